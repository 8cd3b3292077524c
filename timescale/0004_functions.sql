-- Both engines offer these reads (timescale/plain/0004_functions.sql is the twin). Each takes a range [range_from,
-- range_to) of whole buckets; a function of devices also takes their ids, or NULL for all. Each is one SELECT, and
-- PostgreSQL inlines it as long as no argument is a subquery. The range then excludes chunks at planning, and the
-- devices reach the index.

CREATE FUNCTION meter_minute(range_from timestamptz, range_to timestamptz, devices integer[] DEFAULT NULL)
RETURNS SETOF meter_minute_bucket LANGUAGE sql STABLE AS $$
    SELECT * FROM meter_minute_cagg
    WHERE bucket >= range_from AND bucket < range_to AND (devices IS NULL OR meter_id = ANY (devices))
$$;

CREATE FUNCTION vehicle_minute(range_from timestamptz, range_to timestamptz, devices integer[] DEFAULT NULL)
RETURNS SETOF vehicle_minute_bucket LANGUAGE sql STABLE AS $$
    SELECT * FROM vehicle_minute_cagg
    WHERE bucket >= range_from AND bucket < range_to AND (devices IS NULL OR vehicle_id = ANY (devices))
$$;

CREATE FUNCTION meter_hour(range_from timestamptz, range_to timestamptz, devices integer[] DEFAULT NULL)
RETURNS SETOF meter_bucket LANGUAGE sql STABLE AS $$
    SELECT * FROM meter_hour_cagg
    WHERE bucket >= range_from AND bucket < range_to AND (devices IS NULL OR meter_id = ANY (devices))
$$;

CREATE FUNCTION vehicle_hour(range_from timestamptz, range_to timestamptz, devices integer[] DEFAULT NULL)
RETURNS SETOF vehicle_bucket LANGUAGE sql STABLE AS $$
    SELECT * FROM vehicle_hour_cagg
    WHERE bucket >= range_from AND bucket < range_to AND (devices IS NULL OR vehicle_id = ANY (devices))
$$;

CREATE FUNCTION meter_day(range_from timestamptz, range_to timestamptz, devices integer[] DEFAULT NULL)
RETURNS SETOF meter_bucket LANGUAGE sql STABLE AS $$
    SELECT * FROM meter_day_cagg
    WHERE bucket >= range_from AND bucket < range_to AND (devices IS NULL OR meter_id = ANY (devices))
$$;

CREATE FUNCTION vehicle_day(range_from timestamptz, range_to timestamptz, devices integer[] DEFAULT NULL)
RETURNS SETOF vehicle_bucket LANGUAGE sql STABLE AS $$
    SELECT * FROM vehicle_day_cagg
    WHERE bucket >= range_from AND bucket < range_to AND (devices IS NULL OR vehicle_id = ANY (devices))
$$;

-- Returns the end of what is materialised of an aggregate; NULL if it was never refreshed.
CREATE FUNCTION cagg_materialized_through(cagg text) RETURNS timestamptz
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN (
        SELECT nullif(_timescaledb_functions.to_timestamp(_timescaledb_functions.cagg_watermark(materialized.id)),
                      '4714-11-24 00:00Z BC')
        FROM timescaledb_information.continuous_aggregates
        JOIN _timescaledb_catalog.hypertable AS materialized
            ON materialized.schema_name = materialization_hypertable_schema
            AND materialized.table_name = materialization_hypertable_name
        WHERE view_name = cagg);
END
$$;

-- These return the fleet's materialised buckets of one stream, and compute newer ones from the level below. A
-- subquery asks for the watermark, so that it is read once. They group by time_bucket(), since TimescaleDB knows that
-- it preserves the order of time: three minutes of 1,000 readings/s take 39 ms of CPU. With utc_bucket(), which needs
-- a sort, they take 67 ms.
CREATE FUNCTION cagg_fleet_meter_minute(range_from timestamptz, range_to timestamptz) RETURNS TABLE (
    bucket timestamptz, ac_milliwh bigint, readings bigint)
LANGUAGE sql STABLE AS $$
    SELECT bucket, ac_milliwh, readings
    FROM fleet_meter_minute_cagg
    WHERE bucket >= range_from AND bucket < range_to
        AND bucket < (SELECT cagg_materialized_through('fleet_meter_minute_cagg'))
    UNION ALL
    SELECT time_bucket(INTERVAL '1 minute', ts), coalesce(sum(ac_milliwh), 0)::bigint, count(*)
    FROM meter_reading
    WHERE ts >= range_from AND ts < range_to
        AND ts >= (SELECT coalesce(cagg_materialized_through('fleet_meter_minute_cagg'), '-infinity'))
    GROUP BY time_bucket(INTERVAL '1 minute', ts)
$$;

CREATE FUNCTION cagg_fleet_vehicle_minute(range_from timestamptz, range_to timestamptz) RETURNS TABLE (
    bucket timestamptz, dc_milliwh bigint, readings bigint)
LANGUAGE sql STABLE AS $$
    SELECT bucket, dc_milliwh, readings
    FROM fleet_vehicle_minute_cagg
    WHERE bucket >= range_from AND bucket < range_to
        AND bucket < (SELECT cagg_materialized_through('fleet_vehicle_minute_cagg'))
    UNION ALL
    SELECT time_bucket(INTERVAL '1 minute', ts), coalesce(sum(dc_milliwh), 0)::bigint, count(*)
    FROM vehicle_reading
    WHERE ts >= range_from AND ts < range_to
        AND ts >= (SELECT coalesce(cagg_materialized_through('fleet_vehicle_minute_cagg'), '-infinity'))
    GROUP BY time_bucket(INTERVAL '1 minute', ts)
$$;

CREATE FUNCTION cagg_fleet_meter_hour(range_from timestamptz, range_to timestamptz) RETURNS TABLE (
    bucket timestamptz, ac_milliwh bigint, readings bigint)
LANGUAGE sql STABLE AS $$
    SELECT bucket, ac_milliwh, readings
    FROM fleet_meter_hour_cagg
    WHERE bucket >= range_from AND bucket < range_to
        AND bucket < (SELECT cagg_materialized_through('fleet_meter_hour_cagg'))
    UNION ALL
    SELECT time_bucket(INTERVAL '1 hour', bucket), sum(ac_milliwh)::bigint, sum(readings)::bigint
    FROM cagg_fleet_meter_minute(range_from, range_to)
    WHERE bucket >= (SELECT coalesce(cagg_materialized_through('fleet_meter_hour_cagg'), '-infinity'))
    GROUP BY time_bucket(INTERVAL '1 hour', bucket)
$$;

CREATE FUNCTION cagg_fleet_vehicle_hour(range_from timestamptz, range_to timestamptz) RETURNS TABLE (
    bucket timestamptz, dc_milliwh bigint, readings bigint)
LANGUAGE sql STABLE AS $$
    SELECT bucket, dc_milliwh, readings
    FROM fleet_vehicle_hour_cagg
    WHERE bucket >= range_from AND bucket < range_to
        AND bucket < (SELECT cagg_materialized_through('fleet_vehicle_hour_cagg'))
    UNION ALL
    SELECT time_bucket(INTERVAL '1 hour', bucket), sum(dc_milliwh)::bigint, sum(readings)::bigint
    FROM cagg_fleet_vehicle_minute(range_from, range_to)
    WHERE bucket >= (SELECT coalesce(cagg_materialized_through('fleet_vehicle_hour_cagg'), '-infinity'))
    GROUP BY time_bucket(INTERVAL '1 hour', bucket)
$$;

-- In a minute without readings of one stream, that stream's columns are NULL, not zero.
CREATE FUNCTION fleet_minute(range_from timestamptz, range_to timestamptz) RETURNS SETOF fleet_bucket
LANGUAGE sql STABLE AS $$
    SELECT bucket, m.ac_milliwh, m.readings, v.dc_milliwh, v.readings
    FROM cagg_fleet_meter_minute(range_from, range_to) AS m
    FULL JOIN cagg_fleet_vehicle_minute(range_from, range_to) AS v USING (bucket)
$$;

CREATE FUNCTION fleet_hour(range_from timestamptz, range_to timestamptz) RETURNS SETOF fleet_bucket
LANGUAGE sql STABLE AS $$
    SELECT bucket, m.ac_milliwh, m.readings, v.dc_milliwh, v.readings
    FROM cagg_fleet_meter_hour(range_from, range_to) AS m
    FULL JOIN cagg_fleet_vehicle_hour(range_from, range_to) AS v USING (bucket)
$$;

CREATE FUNCTION fleet_day(range_from timestamptz, range_to timestamptz) RETURNS SETOF fleet_bucket
LANGUAGE sql STABLE AS $$
    SELECT utc_bucket('1 day', bucket),
           sum(ac_milliwh)::bigint, sum(meter_readings)::bigint, sum(dc_milliwh)::bigint, sum(vehicle_readings)::bigint
    FROM fleet_hour(range_from, range_to)
    GROUP BY utc_bucket('1 day', bucket)
$$;

-- Every reading that was committed before as_of is in the aggregate: its last refresh, or the level below, says so.
CREATE TABLE cagg_refreshed (
    name   text        PRIMARY KEY,
    as_of  timestamptz NOT NULL
);

-- The chunks that each source of an aggregate had at a refresh. Of those dropped since, the table keeps the last one.
CREATE TABLE source_chunk (
    source     text        NOT NULL,
    chunk      text        NOT NULL,
    range_end  timestamptz NOT NULL,
    PRIMARY KEY (source, chunk)
);

CREATE VIEW present_chunk AS
SELECT coalesce(cagg.view_name, chunk.hypertable_name) AS source, chunk.chunk_name AS chunk,
       chunk.range_start, chunk.range_end, chunk.is_compressed, chunk.chunk_creation_time AS created_at
FROM timescaledb_information.chunks AS chunk
LEFT JOIN timescaledb_information.continuous_aggregates AS cagg
    ON cagg.materialization_hypertable_name = chunk.hypertable_name;

-- Returns the instant from which on the aggregates of a source may be refreshed; NULL means not at all. Dropping a
-- chunk invalidates its range for good, and a refresh of it would erase the buckets. So no refresh begins before the
-- oldest chunk, nor within a chunk that retention may drop meanwhile, nor before the end of any chunk that was ever
-- dropped: a late reading makes a new chunk in its place, which holds nothing else. Neither a setting nor a chunk that
-- is dropped by hand changes that.
CREATE FUNCTION cagg_refreshable_from(of_source text) RETURNS timestamptz
LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_generic_plan -- planning takes 11 ms, and running it 1 ms
AS $$
BEGIN
    RETURN (
        WITH present AS MATERIALIZED (
            SELECT chunk, range_start, range_end FROM present_chunk WHERE source = of_source
        ), oldest AS (
            SELECT min(range_start) AS range_start
            FROM present
            LEFT JOIN timescaledb_information.jobs AS retention
                ON retention.proc_name = 'policy_retention' AND retention.hypertable_name = of_source
            WHERE range_end > now() + INTERVAL '1 day'
                - coalesce((retention.config ->> 'drop_after')::interval, INTERVAL '1000 years')
        )
        -- Without a chunk, greatest() would return the end of the last one.
        SELECT CASE WHEN range_start IS NOT NULL THEN
            greatest(range_start, (SELECT max(range_end) FROM source_chunk
                                   WHERE source = of_source AND chunk NOT IN (SELECT chunk FROM present)))
        END
        FROM oldest);
END
$$;

-- Notes the chunks that a source has now, so that cagg_refreshable_from() knows later which of them were dropped.
CREATE PROCEDURE cagg_note_chunks(of_source text)
LANGUAGE sql AS $$
    -- Two aggregates of one source may be refreshed at once.
    SELECT pg_advisory_xact_lock(hashtext('wattline refresh'), hashtext(of_source));

    INSERT INTO source_chunk (source, chunk, range_end)
    SELECT source, chunk, range_end FROM present_chunk WHERE source = of_source
    ON CONFLICT DO NOTHING;

    WITH dropped AS (
        SELECT chunk, range_end FROM source_chunk
        WHERE source = of_source AND chunk NOT IN (SELECT chunk FROM present_chunk WHERE source = of_source)
    )
    DELETE FROM source_chunk
    WHERE source = of_source
        AND chunk IN (SELECT chunk FROM dropped ORDER BY range_end DESC, chunk DESC OFFSET 1);
$$;

-- Whoever refreshes an aggregate by another way than Wattline's (a policy of TimescaleDB's own, or a CALL of
-- refresh_continuous_aggregate), these triggers leave each bucket as it is that may not be refreshed: a refresh deletes
-- the buckets of its range, and inserts those that its source still has. The first one looks once for each statement.
CREATE FUNCTION cagg_find_history() RETURNS trigger
LANGUAGE plpgsql
SET search_path FROM CURRENT -- a refresh has one that finds no function of ours
SET datestyle = 'ISO'
SET timezone = 'UTC'
AS $$
BEGIN
    PERFORM set_config('wattline.history_before', coalesce(cagg_refreshable_from(TG_ARGV[0]), 'infinity')::text, true);
    RETURN NULL;
END
$$;

CREATE FUNCTION cagg_leave_history() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RETURN NULL;
END
$$;

DO $$
DECLARE
    aggregate  record;
BEGIN
    FOR aggregate IN
        SELECT level.source,
               format('%I.%I', materialization_hypertable_schema, materialization_hypertable_name) AS stored
        FROM cagg_level AS level
        JOIN timescaledb_information.continuous_aggregates ON view_name = level.name || '_cagg'
    LOOP
        EXECUTE format(
            'CREATE TRIGGER find_history BEFORE INSERT OR DELETE ON %s EXECUTE FUNCTION cagg_find_history(%L)',
            aggregate.stored, aggregate.source);
        EXECUTE format(
            'CREATE TRIGGER keep_history BEFORE DELETE ON %s FOR EACH ROW
             WHEN (OLD.bucket < current_setting(''wattline.history_before'')::timestamptz)
             EXECUTE FUNCTION cagg_leave_history()', aggregate.stored);
        EXECUTE format(
            'CREATE TRIGGER keep_history_out BEFORE INSERT ON %s FOR EACH ROW
             WHEN (NEW.bucket < current_setting(''wattline.history_before'')::timestamptz)
             EXECUTE FUNCTION cagg_leave_history()', aggregate.stored);
    END LOOP;
END
$$;

-- The job that refreshes one aggregate, as its `config` from policies.toml says. It records what its refresh has seen:
-- no store transaction runs for more than 5 s, so a refresh has seen each commit of 5 s before its start; an aggregate
-- of an aggregate is as fresh as the level below was then.
CREATE PROCEDURE cagg_refresh(job_id integer, config jsonb)
LANGUAGE plpgsql AS $$
DECLARE
    aggregate  CONSTANT text := config ->> 'aggregate';
    level      record;
    seen       timestamptz := clock_timestamp() - INTERVAL '5 seconds';
    oldest     timestamptz;
    first      timestamptz;
    last       timestamptz;
BEGIN
    SELECT source, width, right(source, 5) = '_cagg' AS of_aggregate INTO STRICT level
    FROM cagg_level WHERE name = aggregate;
    IF level.of_aggregate THEN
        seen := (SELECT as_of FROM cagg_refreshed WHERE name || '_cagg' = level.source);
    END IF;
    CALL cagg_note_chunks(level.source);
    COMMIT;
    oldest := cagg_refreshable_from(level.source);
    -- TimescaleDB refreshes whole buckets, and fails if there is none between the bounds: the day after the oldest
    -- chunk began, there is no day yet.
    first := greatest(oldest, now() - (config ->> 'start_offset')::interval);
    first := utc_bucket(level.width, first - INTERVAL '1 microsecond') + level.width;
    last := utc_bucket(level.width, now() - (config ->> 'end_offset')::interval);
    -- What is materialised already is answered as it stands, so a late reading there cannot wait for the end_offset.
    last := greatest(last, cagg_materialized_through(aggregate || '_cagg'));
    IF oldest IS NOT NULL AND first < last THEN
        CALL refresh_continuous_aggregate(
            (aggregate || '_cagg')::regclass, first, last,
            options => jsonb_build_object('buckets_per_batch', config -> 'buckets_per_batch'));
    END IF;
    INSERT INTO cagg_refreshed (name, as_of)
    SELECT aggregate, seen WHERE seen IS NOT NULL
    ON CONFLICT (name) DO UPDATE SET as_of = greatest(cagg_refreshed.as_of, excluded.as_of);
END
$$;

-- Returns how far each aggregate is materialised, and as_of: it holds every reading that was committed before as_of.
CREATE FUNCTION aggregate_freshness() RETURNS TABLE (name text, materialized_through timestamptz, as_of timestamptz)
LANGUAGE sql STABLE AS $$
    SELECT name, cagg_materialized_through(name || '_cagg'), as_of
    FROM cagg_level
    LEFT JOIN cagg_refreshed USING (name)
$$;

-- Returns from when on each aggregate is whole; NULL if nothing of it is ever dropped. What is older is dropped chunk
-- by chunk.
CREATE FUNCTION aggregate_retention() RETURNS TABLE (name text, kept_from timestamptz)
LANGUAGE sql STABLE AS $$
    SELECT name, now() - (job.config ->> 'drop_after')::interval
    FROM cagg_level
    LEFT JOIN timescaledb_information.jobs AS job
        ON job.proc_name = 'policy_retention' AND job.hypertable_name = name || '_cagg'
$$;

-- Returns from when on an imported reading reaches every aggregate. refresh_aggregates() leaves out chunks that may
-- be dropped within a day, and the import itself may take another day. If there are hours before the oldest chunk of
-- readings, older chunks were dropped. A new reading there would be the only one left, and a refresh would remove the
-- dropped ones from the sums.
CREATE FUNCTION importable_from() RETURNS timestamptz
LANGUAGE sql STABLE AS $$
    SELECT greatest(
        (SELECT max(now() + INTERVAL '2 days'
                    - coalesce((job.config ->> 'drop_after')::interval, INTERVAL '1000 years'))
         FROM unnest(ARRAY['meter_reading', 'vehicle_reading']) AS reading
         LEFT JOIN timescaledb_information.jobs AS job
             ON job.proc_name = 'policy_retention' AND job.hypertable_name = reading),
        (SELECT utc_bucket('1 day', max(bucket)) + INTERVAL '1 day'
         FROM fleet_meter_hour_cagg
         WHERE bucket < (SELECT coalesce(min(range_start), 'infinity') FROM timescaledb_information.chunks
                         WHERE hypertable_name = 'meter_reading')),
        (SELECT utc_bucket('1 day', max(bucket)) + INTERVAL '1 day'
         FROM fleet_vehicle_hour_cagg
         WHERE bucket < (SELECT coalesce(min(range_start), 'infinity') FROM timescaledb_information.chunks
                         WHERE hypertable_name = 'vehicle_reading')))
$$;

-- Refreshes every aggregate over the buckets that [range_from, range_to) touches, minutes before hours before days;
-- without a range it refreshes everything. It never refreshes where the level below was dropped, which would erase
-- the aggregate, nor the bucket that still fills. CALL it outside a transaction.
CREATE PROCEDURE refresh_aggregates(range_from timestamptz DEFAULT NULL, range_to timestamptz DEFAULT NULL)
LANGUAGE plpgsql AS $$
DECLARE
    started  CONSTANT timestamptz := clock_timestamp();
    level    record;
    first    timestamptz;
    last     timestamptz;
BEGIN
    FOR level IN SELECT name || '_cagg' AS cagg, source, width FROM cagg_level LOOP
        CALL cagg_note_chunks(level.source);
        COMMIT;
        first := cagg_refreshable_from(level.source);
        -- Without a chunk, every row of the level below was dropped.
        CONTINUE WHEN first IS NULL;

        first := utc_bucket(level.width, first - INTERVAL '1 microsecond') + level.width;
        first := greatest(first, utc_bucket(level.width, range_from));
        last := least(utc_bucket(level.width, range_to - INTERVAL '1 microsecond') + level.width,
                      utc_bucket(level.width, now() - INTERVAL '1 minute'));
        IF first < last THEN
            RAISE NOTICE 'Refreshing % from % to %', level.cagg, first, last;
            -- By default a transaction refreshes 10 buckets, so that a day of minutes takes 144 transactions.
            CALL refresh_continuous_aggregate(level.cagg::regclass, first, last,
                                              options => '{"buckets_per_batch": 1440}');
        END IF;
    END LOOP;

    IF range_from IS NULL AND range_to IS NULL THEN
        INSERT INTO cagg_refreshed (name, as_of)
        SELECT name, started - INTERVAL '5 seconds' FROM cagg_level
        ON CONFLICT (name) DO UPDATE SET as_of = greatest(cagg_refreshed.as_of, excluded.as_of);
    END IF;
END
$$;

-- It does nothing here: the retention policies drop old chunks.
CREATE FUNCTION drop_expired() RETURNS boolean LANGUAGE sql AS $$ SELECT false $$;
