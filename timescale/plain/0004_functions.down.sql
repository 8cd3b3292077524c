DROP PROCEDURE refresh_aggregates;
DROP FUNCTION drop_expired, importable_from, aggregate_freshness, aggregate_retention;
DROP FUNCTION fleet_day, fleet_hour, fleet_minute;
DROP FUNCTION vehicle_day, meter_day, vehicle_hour, meter_hour, vehicle_minute, meter_minute;
