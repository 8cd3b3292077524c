-- The readings are hypertables with a chunk for each UTC day. Their key begins with ts, since COPY is then a third
-- faster than with (device, ts). There is no other index for differences: each one costs ingest more than it gives,
-- since answers come from the aggregates. Readings of registers have one: a late one has to find its neighbours. Their
-- energy is NULL where it is not known.

CREATE EXTENSION IF NOT EXISTS timescaledb;

CREATE TABLE meter_reading (
    ts                timestamptz    NOT NULL,
    received_at       timestamptz(0) NOT NULL DEFAULT now(),
    register_milliwh  bigint,
    ac_milliwh        bigint,
    meter_id          integer        NOT NULL,
    voltage_centiv    integer,
    PRIMARY KEY (ts, meter_id)
);

CREATE TABLE vehicle_reading (
    ts                   timestamptz    NOT NULL,
    received_at          timestamptz(0) NOT NULL DEFAULT now(),
    register_milliwh     bigint,
    dc_milliwh           bigint,
    vehicle_id           integer        NOT NULL,
    meter_id             integer,
    soc_centipercent     smallint,
    battery_temp_centic  smallint,
    PRIMARY KEY (ts, vehicle_id)
);

SELECT create_hypertable('meter_reading', by_range('ts', INTERVAL '1 day'), create_default_indexes => false);
SELECT create_hypertable('vehicle_reading', by_range('ts', INTERVAL '1 day'), create_default_indexes => false);

CREATE INDEX meter_reading_register_idx ON meter_reading (meter_id, ts) WHERE register_milliwh IS NOT NULL;
CREATE INDEX vehicle_reading_register_idx ON vehicle_reading (vehicle_id, ts) WHERE register_milliwh IS NOT NULL;

-- It does nothing here: TimescaleDB makes a chunk when an insert needs it.
CREATE FUNCTION prepare_days(range_from timestamptz, range_to timestamptz) RETURNS void
LANGUAGE sql AS $$ SELECT $$;
