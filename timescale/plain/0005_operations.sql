-- These answer an operator's questions about jobs, their scheduler and sizes (timescale/0005_operations.sql is the
-- twin). All of them are cheap and only read.

-- There are no jobs: Wattline's maintenance loop does the work, and there is nothing to refresh or to compress.
CREATE FUNCTION background_jobs() RETURNS TABLE (
    job_id integer, work text, target text, schedule interval, owner text, owner_may_login boolean, paused boolean,
    last_start timestamptz, last_status text, crashes integer, next_start timestamptz, due_at timestamptz,
    last_error text)
LANGUAGE sql STABLE AS $$
    SELECT NULL::integer, NULL, NULL, NULL::interval, NULL, NULL::boolean, NULL::boolean, NULL::timestamptz, NULL,
           NULL::integer, NULL::timestamptz, NULL::timestamptz, NULL
    WHERE false
$$;

-- Without jobs there is no scheduler.
CREATE FUNCTION job_scheduler() RETURNS TABLE (
    licence text, workers integer, workers_setting text, workers_in_use jsonb, running boolean, restoring boolean)
LANGUAGE sql STABLE AS $$
    SELECT NULL, NULL::integer, NULL, NULL::jsonb, NULL::boolean, NULL::boolean WHERE false
$$;

-- Returns the days of the readings, and one row for each stored aggregate, whose hours and days are those of dropped
-- rows.
CREATE FUNCTION engine_parts() RETURNS TABLE (
    name text, part text, range_start timestamptz, range_end timestamptz, compressed boolean, rows_estimated bigint,
    bytes bigint, bytes_before bigint)
LANGUAGE sql STABLE AS $$
    SELECT regexp_replace(stored, '_kept$', ''), part.relname,
           day::timestamp AT TIME ZONE 'UTC', (day + 1)::timestamp AT TIME ZONE 'UTC', false,
           -- reltuples is as of the last ANALYZE, and -1 before the first one.
           greatest(part.reltuples::bigint, pg_stat_get_live_tuples(part.oid)),
           pg_total_relation_size(part.oid), NULL::bigint
    FROM unnest(ARRAY['meter_reading', 'vehicle_reading', 'fleet_meter_minute', 'fleet_vehicle_minute',
                      'fleet_meter_hour_kept', 'fleet_vehicle_hour_kept', 'meter_hour_kept', 'vehicle_hour_kept',
                      'meter_day_kept', 'vehicle_day_kept'])
        AS stored
    LEFT JOIN pg_inherits ON inhparent = stored::regclass
    JOIN pg_class AS part ON part.oid = coalesce(inhrelid, stored::regclass)
    CROSS JOIN LATERAL (
        SELECT to_date(substring(part.relname FROM '_(\d{8})$'), 'YYYYMMDD') WHERE part.relispartition
        UNION ALL
        SELECT NULL WHERE NOT part.relispartition
    ) AS of_part (day)
$$;

-- Returns why this engine stores no reading; NULL when it does. The first reading of a day may need a partition, which
-- takes the rights of the owner.
CREATE FUNCTION engine_fault() RETURNS text LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN NOT pg_has_role(relowner, 'USAGE')
            AND NOT (SELECT prosecdef AND has_function_privilege(oid, 'EXECUTE') FROM pg_proc
                     WHERE oid = 'prepare_days(timestamptz, timestamptz)'::regprocedure)
        THEN 'not_permitted'
    END
    FROM pg_class WHERE oid = 'meter_reading'::regclass
$$;

-- Returns until when partitions exist for new readings. The maintenance loop makes those of the next two days.
CREATE FUNCTION prepared_until() RETURNS timestamptz
LANGUAGE sql STABLE AS $$
    SELECT min(until) FROM (
        SELECT max(to_date(right(part.relname, 8), 'YYYYMMDD') + 1)::timestamp AT TIME ZONE 'UTC' AS until
        FROM unnest(ARRAY['meter_reading', 'vehicle_reading']) AS parent
        LEFT JOIN pg_inherits ON inhparent = parent::regclass
        LEFT JOIN pg_class AS part ON part.oid = inhrelid
        GROUP BY parent
    ) AS prepared
$$;

-- Nothing is ever compressed.
CREATE FUNCTION chunks_not_compressed() RETURNS TABLE (name text, chunks bigint, job_id integer)
LANGUAGE sql STABLE AS $$
    SELECT NULL, NULL::bigint, NULL::integer WHERE false
$$;
