-- Plain PostgreSQL has to store two things itself: the fleet's minutes, which no index over the readings could answer
-- fast enough, and the hours and days of readings that are dropped. It computes everything else from the readings
-- when asked.

-- Every batch adds to the same few minutes. Each minute has a row for each of 16 shards, and a backend always uses
-- the same shard, so that concurrent batches do not queue for one row lock.
CREATE TABLE fleet_meter_minute (
    bucket      timestamptz NOT NULL,
    shard       smallint    NOT NULL,
    ac_milliwh  bigint      NOT NULL,
    readings    bigint      NOT NULL,
    PRIMARY KEY (bucket, shard)
) WITH (fillfactor = 50);

CREATE TABLE fleet_vehicle_minute (
    bucket      timestamptz NOT NULL,
    shard       smallint    NOT NULL,
    dc_milliwh  bigint      NOT NULL,
    readings    bigint      NOT NULL,
    PRIMARY KEY (bucket, shard)
) WITH (fillfactor = 50);

-- The trigger runs once for each COPY or INSERT, over the rows that were really inserted. It sorts them, so that two
-- backends of one shard cannot deadlock.
CREATE FUNCTION add_to_fleet_meter_minute() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO fleet_meter_minute AS kept (bucket, shard, ac_milliwh, readings)
    SELECT utc_bucket('1 minute', ts) AS bucket, pg_backend_pid() % 16,
           coalesce(sum(ac_milliwh), 0), count(*)
    FROM inserted
    GROUP BY bucket
    ORDER BY bucket
    ON CONFLICT (bucket, shard) DO UPDATE SET
        ac_milliwh = kept.ac_milliwh + excluded.ac_milliwh,
        readings = kept.readings + excluded.readings;
    RETURN NULL;
END
$$;

CREATE FUNCTION add_to_fleet_vehicle_minute() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO fleet_vehicle_minute AS kept (bucket, shard, dc_milliwh, readings)
    SELECT utc_bucket('1 minute', ts) AS bucket, pg_backend_pid() % 16,
           coalesce(sum(dc_milliwh), 0), count(*)
    FROM inserted
    GROUP BY bucket
    ORDER BY bucket
    ON CONFLICT (bucket, shard) DO UPDATE SET
        dc_milliwh = kept.dc_milliwh + excluded.dc_milliwh,
        readings = kept.readings + excluded.readings;
    RETURN NULL;
END
$$;

CREATE TRIGGER add_to_fleet_minute AFTER INSERT ON meter_reading
    REFERENCING NEW TABLE AS inserted FOR EACH STATEMENT EXECUTE FUNCTION add_to_fleet_meter_minute();
CREATE TRIGGER add_to_fleet_minute AFTER INSERT ON vehicle_reading
    REFERENCING NEW TABLE AS inserted FOR EACH STATEMENT EXECUTE FUNCTION add_to_fleet_vehicle_minute();

-- A reading that comes late changes the energy of the register's reading after it.
CREATE FUNCTION correct_fleet_meter_minute() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO fleet_meter_minute AS kept (bucket, shard, ac_milliwh, readings)
    SELECT utc_bucket('1 minute', ts) AS bucket, pg_backend_pid() % 16, sum(ac_milliwh), 0
    FROM (SELECT ts, ac_milliwh FROM corrected UNION ALL SELECT ts, -ac_milliwh FROM former) AS change
    GROUP BY bucket
    HAVING sum(ac_milliwh) <> 0
    ORDER BY bucket
    ON CONFLICT (bucket, shard) DO UPDATE SET ac_milliwh = kept.ac_milliwh + excluded.ac_milliwh;
    RETURN NULL;
END
$$;

CREATE FUNCTION correct_fleet_vehicle_minute() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO fleet_vehicle_minute AS kept (bucket, shard, dc_milliwh, readings)
    SELECT utc_bucket('1 minute', ts) AS bucket, pg_backend_pid() % 16, sum(dc_milliwh), 0
    FROM (SELECT ts, dc_milliwh FROM corrected UNION ALL SELECT ts, -dc_milliwh FROM former) AS change
    GROUP BY bucket
    HAVING sum(dc_milliwh) <> 0
    ORDER BY bucket
    ON CONFLICT (bucket, shard) DO UPDATE SET dc_milliwh = kept.dc_milliwh + excluded.dc_milliwh;
    RETURN NULL;
END
$$;

CREATE TRIGGER correct_fleet_minute AFTER UPDATE ON meter_reading
    REFERENCING OLD TABLE AS former NEW TABLE AS corrected
    FOR EACH STATEMENT EXECUTE FUNCTION correct_fleet_meter_minute();
CREATE TRIGGER correct_fleet_minute AFTER UPDATE ON vehicle_reading
    REFERENCING OLD TABLE AS former NEW TABLE AS corrected
    FOR EACH STATEMENT EXECUTE FUNCTION correct_fleet_vehicle_minute();

-- These tables hold the hours of a device whose readings were dropped, and the days of hours that were dropped.
CREATE TABLE meter_hour_kept OF meter_bucket (
    ac_milliwh NOT NULL, readings NOT NULL, voltage_readings NOT NULL, PRIMARY KEY (meter_id, bucket));
CREATE TABLE meter_day_kept OF meter_bucket (
    ac_milliwh NOT NULL, readings NOT NULL, voltage_readings NOT NULL, PRIMARY KEY (meter_id, bucket));
CREATE TABLE vehicle_hour_kept OF vehicle_bucket (
    dc_milliwh NOT NULL, readings NOT NULL, soc_readings NOT NULL, battery_temp_readings NOT NULL,
    PRIMARY KEY (vehicle_id, bucket));
CREATE TABLE vehicle_day_kept OF vehicle_bucket (
    dc_milliwh NOT NULL, readings NOT NULL, soc_readings NOT NULL, battery_temp_readings NOT NULL,
    PRIMARY KEY (vehicle_id, bucket));

-- Each minute, the maintenance loop looks for hours that are too old. Hours are stored day by day, which suits BRIN.
CREATE INDEX meter_hour_kept_bucket_idx ON meter_hour_kept USING brin (bucket) WITH (autosummarize = on);
CREATE INDEX vehicle_hour_kept_bucket_idx ON vehicle_hour_kept USING brin (bucket) WITH (autosummarize = on);

CREATE TABLE fleet_meter_hour_kept (
    bucket      timestamptz PRIMARY KEY,
    ac_milliwh  bigint      NOT NULL,
    readings    bigint      NOT NULL
);

CREATE TABLE fleet_vehicle_hour_kept (
    bucket      timestamptz PRIMARY KEY,
    dc_milliwh  bigint      NOT NULL,
    readings    bigint      NOT NULL
);
