DROP MATERIALIZED VIEW vehicle_day_cagg;
DROP MATERIALIZED VIEW meter_day_cagg;
DROP MATERIALIZED VIEW vehicle_hour_cagg;
DROP MATERIALIZED VIEW meter_hour_cagg;
DROP MATERIALIZED VIEW fleet_vehicle_minute_cagg;
DROP MATERIALIZED VIEW fleet_meter_minute_cagg;
DROP MATERIALIZED VIEW vehicle_minute_cagg;
DROP MATERIALIZED VIEW meter_minute_cagg;
