DROP FUNCTION utc_bucket;
DROP TYPE fleet_bucket, vehicle_bucket, meter_bucket, vehicle_minute_bucket, meter_minute_bucket;
