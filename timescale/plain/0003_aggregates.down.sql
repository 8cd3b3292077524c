DROP TABLE retention;
DROP TABLE vehicle_hour_kept;
DROP TABLE meter_hour_kept;
DROP TRIGGER add_to_fleet_minute ON vehicle_reading;
DROP TRIGGER add_to_fleet_minute ON meter_reading;
DROP FUNCTION add_to_fleet_vehicle_minute();
DROP FUNCTION add_to_fleet_meter_minute();
DROP TABLE fleet_vehicle_minute;
DROP TABLE fleet_meter_minute;
