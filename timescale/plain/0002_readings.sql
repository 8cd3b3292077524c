-- The readings are partitioned by UTC day. Their key begins with the device: minutes are computed from the readings
-- when asked for, so this index answers every read. The energy of a register's reading is NULL where it is not known.

CREATE TABLE meter_reading (
    ts                timestamptz    NOT NULL,
    received_at       timestamptz(0) NOT NULL DEFAULT now(),
    register_milliwh  bigint,
    ac_milliwh        bigint,
    meter_id          integer        NOT NULL,
    voltage_centiv    integer,
    PRIMARY KEY (meter_id, ts)
) PARTITION BY RANGE (ts);

CREATE TABLE vehicle_reading (
    ts                   timestamptz    NOT NULL,
    received_at          timestamptz(0) NOT NULL DEFAULT now(),
    register_milliwh     bigint,
    dc_milliwh           bigint,
    vehicle_id           integer        NOT NULL,
    meter_id             integer,
    soc_centipercent     smallint,
    battery_temp_centic  smallint,
    PRIMARY KEY (vehicle_id, ts)
) PARTITION BY RANGE (ts);

-- The index finds the other vehicles at a meter without reading those of the one: vehicle_id < x or > x.
CREATE INDEX vehicle_reading_meter_id_vehicle_id_ts_idx ON vehicle_reading (meter_id, vehicle_id, ts);

-- Makes the missing partitions of the UTC days that [range_from, range_to] touches. Attaching a finished table blocks
-- other DDL only; CREATE TABLE ... PARTITION OF would block every insert.
CREATE FUNCTION prepare_days(range_from timestamptz, range_to timestamptz) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    day        date;
    parent     text;
    partition  text;
BEGIN
    FOR day IN
        SELECT generate_series((range_from AT TIME ZONE 'UTC')::date, (range_to AT TIME ZONE 'UTC')::date, '1 day')
    LOOP
        FOREACH parent IN ARRAY ARRAY['meter_reading', 'vehicle_reading'] LOOP
            partition := parent || to_char(day, '_YYYYMMDD');
            CONTINUE WHEN to_regclass(partition) IS NOT NULL;
            PERFORM pg_advisory_xact_lock(hashtext('wattline prepare_days'));
            -- Another process may have made the partition meanwhile; to_regclass would still miss it, because of this
            -- session's cache.
            CONTINUE WHEN EXISTS (SELECT FROM pg_class WHERE relname = partition AND pg_table_is_visible(oid));
            EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL)', partition, parent);
            EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', parent, partition,
                           day::timestamp AT TIME ZONE 'UTC', (day + 1)::timestamp AT TIME ZONE 'UTC');
        END LOOP;
    END LOOP;
END
$$;
