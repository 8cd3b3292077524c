-- The readings, as hypertables of one UTC day a chunk.
-- The key begins with ts and stands alone: with it COPY is a third faster than with (device, ts), and every further
-- index costs ingest more than it gives, since answers come from the aggregates.

CREATE EXTENSION IF NOT EXISTS timescaledb;

CREATE TABLE meter_reading (
    ts              timestamptz    NOT NULL,
    received_at     timestamptz(0) NOT NULL DEFAULT now(),
    meter_id        integer        NOT NULL,
    ac_milliwh      integer        NOT NULL,
    voltage_centiv  integer,
    PRIMARY KEY (ts, meter_id)
);

CREATE TABLE vehicle_reading (
    ts                   timestamptz    NOT NULL,
    received_at          timestamptz(0) NOT NULL DEFAULT now(),
    vehicle_id           integer        NOT NULL,
    meter_id             integer,
    dc_milliwh           integer        NOT NULL,
    soc_centipercent     smallint,
    battery_temp_centic  smallint,
    PRIMARY KEY (ts, vehicle_id)
);

SELECT create_hypertable('meter_reading', by_range('ts', INTERVAL '1 day'), create_default_indexes => false);
SELECT create_hypertable('vehicle_reading', by_range('ts', INTERVAL '1 day'), create_default_indexes => false);

-- Segments and order are the unique key, so that a re-sent reading is found in its batch without decompressing others.
ALTER TABLE meter_reading SET (
    timescaledb.enable_columnstore, timescaledb.segmentby = 'meter_id', timescaledb.orderby = 'ts DESC');
ALTER TABLE vehicle_reading SET (
    timescaledb.enable_columnstore, timescaledb.segmentby = 'vehicle_id', timescaledb.orderby = 'ts DESC');

-- Chunks are made by the insert that needs them.
CREATE FUNCTION prepare_days(range_from timestamptz, range_to timestamptz) RETURNS void
LANGUAGE sql AS $$ SELECT $$;
