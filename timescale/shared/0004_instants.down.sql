DROP FUNCTION aggregate_instants;
