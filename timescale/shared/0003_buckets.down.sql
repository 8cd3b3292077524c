DROP FUNCTION utc_bucket;
DROP TYPE fleet_bucket, vehicle_meter_bucket, vehicle_bucket, meter_bucket;
