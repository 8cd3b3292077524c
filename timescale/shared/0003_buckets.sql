-- Both engines answer rows of these types, and find the bucket of an instant by the same function.

-- A minute says when its first and its last reading were measured: the sum of a device's energies up to a minute is
-- what flowed until last_ts. Readings whose energy is not known count in both numbers of readings; they add nothing to
-- any sum of energies. In a minute, a vehicle has a row for each meter. `bucket` is the second column in every
-- aggregate of a device: TimescaleDB 2.29 refuses a third level above a parent that has it elsewhere.
CREATE TYPE meter_minute_bucket AS (
    meter_id            integer,
    bucket              timestamptz,
    first_ts            timestamptz,
    last_ts             timestamptz,
    ac_milliwh          bigint,
    readings            bigint,
    unknown_readings    bigint,
    voltage_centiv_sum  bigint,
    voltage_readings    bigint,
    voltage_centiv_min  integer,
    voltage_centiv_max  integer
);

CREATE TYPE vehicle_minute_bucket AS (
    vehicle_id               integer,
    bucket                   timestamptz,
    meter_id                 integer,
    first_ts                 timestamptz,
    last_ts                  timestamptz,
    dc_milliwh               bigint,
    readings                 bigint,
    unknown_readings         bigint,
    soc_centipercent_sum     bigint,
    soc_readings             bigint,
    soc_centipercent_min     smallint,
    soc_centipercent_max     smallint,
    battery_temp_centic_sum  bigint,
    battery_temp_readings    bigint,
    battery_temp_centic_min  smallint,
    battery_temp_centic_max  smallint
);

-- Hours and days have rows of these types, without the instants.
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

-- In a bucket without readings of one stream, that stream's columns are NULL, not zero.
CREATE TYPE fleet_bucket AS (
    bucket            timestamptz,
    ac_milliwh        bigint,
    meter_readings    bigint,
    dc_milliwh        bigint,
    vehicle_readings  bigint
);

-- Returns the start of the minute, hour or day (or of another fixed width) of UTC that an instant lies in. PostgreSQL
-- inlines it.
CREATE FUNCTION utc_bucket(width interval, ts timestamptz) RETURNS timestamptz
IMMUTABLE PARALLEL SAFE
RETURN date_bin(width, ts, TIMESTAMPTZ '2000-01-01 00:00Z');
