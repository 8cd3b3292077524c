-- The shapes of the rows that both engines answer, and how an instant finds its bucket.

CREATE TYPE meter_bucket AS (
    meter_id            integer,
    bucket              timestamptz,
    ac_milliwh          bigint,
    readings            bigint,
    voltage_centiv_sum  bigint,
    voltage_readings    bigint,
    voltage_centiv_min  integer,
    voltage_centiv_max  integer
);

CREATE TYPE vehicle_bucket AS (
    vehicle_id               integer,
    bucket                   timestamptz,
    dc_milliwh               bigint,
    readings                 bigint,
    soc_centipercent_sum     bigint,
    soc_readings             bigint,
    soc_centipercent_min     smallint,
    soc_centipercent_max     smallint,
    battery_temp_centic_sum  bigint,
    battery_temp_readings    bigint,
    battery_temp_centic_min  smallint,
    battery_temp_centic_max  smallint
);

-- A vehicle has a row for each meter in a minute. `bucket` stands second in every aggregate of a device: TimescaleDB 2.29
-- refuses a third level above a parent that has it elsewhere.
CREATE TYPE vehicle_meter_bucket AS (
    vehicle_id               integer,
    bucket                   timestamptz,
    meter_id                 integer,
    dc_milliwh               bigint,
    readings                 bigint,
    soc_centipercent_sum     bigint,
    soc_readings             bigint,
    soc_centipercent_min     smallint,
    soc_centipercent_max     smallint,
    battery_temp_centic_sum  bigint,
    battery_temp_readings    bigint,
    battery_temp_centic_min  smallint,
    battery_temp_centic_max  smallint
);

-- A bucket in which one stream was silent has NULL there, not zero.
CREATE TYPE fleet_bucket AS (
    bucket            timestamptz,
    ac_milliwh        bigint,
    meter_readings    bigint,
    dc_milliwh        bigint,
    vehicle_readings  bigint
);

-- The start of the bucket that an instant lies in. Minutes, hours and days are those of UTC. PostgreSQL inlines it.
CREATE FUNCTION utc_bucket(width interval, ts timestamptz) RETURNS timestamptz
IMMUTABLE PARALLEL SAFE
RETURN date_bin(width, ts, TIMESTAMPTZ '2000-01-01 00:00Z');
