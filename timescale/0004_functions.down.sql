DROP PROCEDURE refresh_aggregates;
DROP FUNCTION drop_expired, importable_from, aggregate_retention, aggregate_freshness;
DROP PROCEDURE cagg_refresh, cagg_note_chunks;
DROP FUNCTION cagg_find_history, cagg_leave_history CASCADE; -- with their triggers
DROP FUNCTION cagg_refreshable_from;
DROP VIEW present_chunk;
DROP TABLE cagg_refreshed, source_chunk;
DROP FUNCTION fleet_day, fleet_hour, fleet_minute;
DROP FUNCTION cagg_fleet_vehicle_hour, cagg_fleet_meter_hour, cagg_fleet_vehicle_minute, cagg_fleet_meter_minute;
DROP FUNCTION cagg_materialized_through, vehicle_day, meter_day, vehicle_hour, meter_hour, vehicle_minute, meter_minute;
