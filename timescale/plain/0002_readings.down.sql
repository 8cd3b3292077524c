DROP FUNCTION prepare_days(timestamptz, timestamptz);
DROP TABLE vehicle_reading;
DROP TABLE meter_reading;
