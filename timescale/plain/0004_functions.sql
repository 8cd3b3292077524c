-- Both engines offer these reads (timescale/0004_functions.sql is the twin). Each takes a range [range_from,
-- range_to) of whole buckets; a function of devices also takes their ids, or NULL for all. Each is one SELECT, and
-- PostgreSQL inlines it as long as no argument is a subquery. The range then excludes partitions at planning, and the
-- devices reach the index.

CREATE FUNCTION meter_minute(range_from timestamptz, range_to timestamptz, devices integer[] DEFAULT NULL)
RETURNS SETOF meter_minute_bucket LANGUAGE sql STABLE AS $$
    SELECT meter_id, utc_bucket('1 minute', ts), min(ts), max(ts),
           coalesce(sum(ac_milliwh), 0)::bigint, count(*), count(*) - count(ac_milliwh),
           sum(voltage_centiv), count(voltage_centiv), min(voltage_centiv), max(voltage_centiv)
    FROM meter_reading
    WHERE ts >= range_from AND ts < range_to AND (devices IS NULL OR meter_id = ANY (devices))
    GROUP BY meter_id, utc_bucket('1 minute', ts)
$$;

CREATE FUNCTION vehicle_minute(range_from timestamptz, range_to timestamptz, devices integer[] DEFAULT NULL)
RETURNS SETOF vehicle_minute_bucket LANGUAGE sql STABLE AS $$
    SELECT vehicle_id, utc_bucket('1 minute', ts), meter_id, min(ts), max(ts),
           coalesce(sum(dc_milliwh), 0)::bigint, count(*), count(*) - count(dc_milliwh),
           sum(soc_centipercent), count(soc_centipercent), min(soc_centipercent), max(soc_centipercent),
           sum(battery_temp_centic), count(battery_temp_centic), min(battery_temp_centic), max(battery_temp_centic)
    FROM vehicle_reading
    WHERE ts >= range_from AND ts < range_to AND (devices IS NULL OR vehicle_id = ANY (devices))
    GROUP BY vehicle_id, meter_id, utc_bucket('1 minute', ts)
$$;

-- Returns the stored hours of dropped readings, and the hours of readings that are still there.
CREATE FUNCTION meter_hour(range_from timestamptz, range_to timestamptz, devices integer[] DEFAULT NULL)
RETURNS SETOF meter_bucket LANGUAGE sql STABLE AS $$
    SELECT * FROM meter_hour_kept
    WHERE bucket >= range_from AND bucket < range_to AND (devices IS NULL OR meter_id = ANY (devices))
    UNION ALL
    SELECT meter_id, utc_bucket('1 hour', ts),
           coalesce(sum(ac_milliwh), 0)::bigint, count(*),
           sum(voltage_centiv), count(voltage_centiv), min(voltage_centiv), max(voltage_centiv)
    FROM meter_reading
    WHERE ts >= range_from AND ts < range_to AND (devices IS NULL OR meter_id = ANY (devices))
    GROUP BY meter_id, utc_bucket('1 hour', ts)
$$;

-- Returns the stored hours of dropped readings, and the hours of readings that are still there.
CREATE FUNCTION vehicle_hour(range_from timestamptz, range_to timestamptz, devices integer[] DEFAULT NULL)
RETURNS SETOF vehicle_bucket LANGUAGE sql STABLE AS $$
    SELECT * FROM vehicle_hour_kept
    WHERE bucket >= range_from AND bucket < range_to AND (devices IS NULL OR vehicle_id = ANY (devices))
    UNION ALL
    SELECT vehicle_id, utc_bucket('1 hour', ts), coalesce(sum(dc_milliwh), 0)::bigint, count(*),
           sum(soc_centipercent), count(soc_centipercent), min(soc_centipercent), max(soc_centipercent),
           sum(battery_temp_centic), count(battery_temp_centic), min(battery_temp_centic), max(battery_temp_centic)
    FROM vehicle_reading
    WHERE ts >= range_from AND ts < range_to AND (devices IS NULL OR vehicle_id = ANY (devices))
    GROUP BY vehicle_id, utc_bucket('1 hour', ts)
$$;

-- Returns the stored days of dropped hours, and the days of hours that are still there.
CREATE FUNCTION meter_day(range_from timestamptz, range_to timestamptz, devices integer[] DEFAULT NULL)
RETURNS SETOF meter_bucket LANGUAGE sql STABLE AS $$
    SELECT * FROM meter_day_kept
    WHERE bucket >= range_from AND bucket < range_to AND (devices IS NULL OR meter_id = ANY (devices))
    UNION ALL
    SELECT meter_id, utc_bucket('1 day', bucket),
           sum(ac_milliwh)::bigint, sum(readings)::bigint, sum(voltage_centiv_sum)::bigint,
           sum(voltage_readings)::bigint, min(voltage_centiv_min), max(voltage_centiv_max)
    FROM meter_hour(range_from, range_to, devices)
    GROUP BY meter_id, utc_bucket('1 day', bucket)
$$;

-- Returns the stored days of dropped hours, and the days of hours that are still there.
CREATE FUNCTION vehicle_day(range_from timestamptz, range_to timestamptz, devices integer[] DEFAULT NULL)
RETURNS SETOF vehicle_bucket LANGUAGE sql STABLE AS $$
    SELECT * FROM vehicle_day_kept
    WHERE bucket >= range_from AND bucket < range_to AND (devices IS NULL OR vehicle_id = ANY (devices))
    UNION ALL
    SELECT vehicle_id, utc_bucket('1 day', bucket),
           sum(dc_milliwh)::bigint, sum(readings)::bigint,
           sum(soc_centipercent_sum)::bigint, sum(soc_readings)::bigint,
           min(soc_centipercent_min), max(soc_centipercent_max),
           sum(battery_temp_centic_sum)::bigint, sum(battery_temp_readings)::bigint,
           min(battery_temp_centic_min), max(battery_temp_centic_max)
    FROM vehicle_hour(range_from, range_to, devices)
    GROUP BY vehicle_id, utc_bucket('1 day', bucket)
$$;

-- In a minute without readings of one stream, that stream's columns are NULL, not zero.
CREATE FUNCTION fleet_minute(range_from timestamptz, range_to timestamptz) RETURNS SETOF fleet_bucket
LANGUAGE sql STABLE AS $$
    SELECT bucket, m.ac_milliwh, m.readings, v.dc_milliwh, v.readings
    FROM (SELECT bucket, sum(ac_milliwh)::bigint AS ac_milliwh, sum(readings)::bigint AS readings
          FROM fleet_meter_minute
          WHERE bucket >= range_from AND bucket < range_to
          GROUP BY bucket) AS m
    FULL JOIN
         (SELECT bucket, sum(dc_milliwh)::bigint AS dc_milliwh, sum(readings)::bigint AS readings
          FROM fleet_vehicle_minute
          WHERE bucket >= range_from AND bucket < range_to
          GROUP BY bucket) AS v USING (bucket)
$$;

-- Returns the stored hours of dropped minutes, and the hours of minutes that are still there.
CREATE FUNCTION fleet_hour(range_from timestamptz, range_to timestamptz) RETURNS SETOF fleet_bucket
LANGUAGE sql STABLE AS $$
    SELECT bucket, m.ac_milliwh, m.readings, v.dc_milliwh, v.readings
    FROM (SELECT bucket, sum(ac_milliwh)::bigint AS ac_milliwh, sum(readings)::bigint AS readings
          FROM (SELECT bucket, ac_milliwh, readings
                FROM fleet_meter_hour_kept
                WHERE bucket >= range_from AND bucket < range_to
                UNION ALL
                SELECT utc_bucket('1 hour', bucket), ac_milliwh, readings
                FROM fleet_meter_minute
                WHERE bucket >= range_from AND bucket < range_to) AS parts
          GROUP BY bucket) AS m
    FULL JOIN
         (SELECT bucket, sum(dc_milliwh)::bigint AS dc_milliwh, sum(readings)::bigint AS readings
          FROM (SELECT bucket, dc_milliwh, readings
                FROM fleet_vehicle_hour_kept
                WHERE bucket >= range_from AND bucket < range_to
                UNION ALL
                SELECT utc_bucket('1 hour', bucket), dc_milliwh, readings
                FROM fleet_vehicle_minute
                WHERE bucket >= range_from AND bucket < range_to) AS parts
          GROUP BY bucket) AS v USING (bucket)
$$;

CREATE FUNCTION fleet_day(range_from timestamptz, range_to timestamptz) RETURNS SETOF fleet_bucket
LANGUAGE sql STABLE AS $$
    SELECT utc_bucket('1 day', bucket),
           sum(ac_milliwh)::bigint, sum(meter_readings)::bigint, sum(dc_milliwh)::bigint, sum(vehicle_readings)::bigint
    FROM fleet_hour(range_from, range_to)
    GROUP BY utc_bucket('1 day', bucket)
$$;

-- Returns from when on each aggregate is whole; NULL if nothing of it is ever dropped. A device's minutes are as old
-- as its readings.
CREATE FUNCTION aggregate_retention() RETURNS TABLE (name text, kept_from timestamptz)
LANGUAGE sql STABLE AS $$
    SELECT aggregate.name, now() - retention.drop_after
    FROM (VALUES ('meter_minute', 'meter_reading'), ('vehicle_minute', 'vehicle_reading'),
                 ('fleet_meter_minute', 'fleet_meter_minute'), ('fleet_vehicle_minute', 'fleet_vehicle_minute'),
                 ('fleet_meter_hour', NULL), ('fleet_vehicle_hour', NULL),
                 ('meter_hour', 'meter_hour'), ('vehicle_hour', 'vehicle_hour'),
                 ('meter_day', NULL), ('vehicle_day', NULL)) AS aggregate (name, source)
    LEFT JOIN retention ON retention.name = aggregate.source
$$;

-- Nothing is materialised, so every aggregate is as fresh as the tables. as_of: a statement that starts later sees
-- every reading committed before it. An open transaction may have taken its commit time already, so as_of is not
-- later than its start; a store transaction runs for 5 s at most.
CREATE FUNCTION aggregate_freshness() RETURNS TABLE (name text, materialized_through timestamptz, as_of timestamptz)
LANGUAGE sql STABLE AS $$
    SELECT name, now(),
           greatest(now() - INTERVAL '5 seconds',
                    least(now(), (SELECT min(xact_start) FROM pg_stat_activity
                                  WHERE datname = current_database() AND backend_xid IS NOT NULL)))
    FROM aggregate_retention()
$$;

-- Returns from when on an imported reading reaches every aggregate. drop_expired() drops whole days, and the import
-- itself may take two days. If the fleet has minutes before the oldest day of readings, older days were dropped and
-- their hours stored. New readings there would be counted beside those hours.
CREATE FUNCTION importable_from() RETURNS timestamptz
LANGUAGE sql STABLE AS $$
    WITH oldest AS (
        SELECT parent, coalesce(min(to_date(right(part.relname, 8), 'YYYYMMDD'))::timestamp AT TIME ZONE 'UTC',
                                'infinity') AS day
        FROM unnest(ARRAY['meter_reading', 'vehicle_reading']) AS parent
        LEFT JOIN pg_inherits ON inhparent = parent::regclass
        LEFT JOIN pg_class AS part ON part.oid = inhrelid
        GROUP BY parent
    )
    SELECT greatest(
        (SELECT max(now() + INTERVAL '2 days' - coalesce(drop_after, INTERVAL '1000 years'))
         FROM unnest(ARRAY['meter_reading', 'vehicle_reading']) AS reading
         LEFT JOIN retention ON retention.name = reading),
        (SELECT utc_bucket('1 day', max(bucket)) + INTERVAL '1 day'
         FROM fleet_meter_minute WHERE bucket < (SELECT day FROM oldest WHERE parent = 'meter_reading')),
        (SELECT utc_bucket('1 day', max(bucket)) + INTERVAL '1 day'
         FROM fleet_vehicle_minute WHERE bucket < (SELECT day FROM oldest WHERE parent = 'vehicle_reading')))
$$;

CREATE PROCEDURE refresh_aggregates(range_from timestamptz DEFAULT NULL, range_to timestamptz DEFAULT NULL)
LANGUAGE sql AS $$ SELECT $$;

-- Drops the oldest partition whose readings have expired, after storing its hours, and returns true. Without such a
-- partition it drops the devices' hours and the fleet's minutes that have expired, after storing their days and
-- hours, and returns false. A call drops one partition only: that locks the parent table, and further work in the
-- same transaction would block every insert. For the same reason it gives up after a short wait for a lock, and the
-- next call tries again. The partition is locked against late inserts before its hours are computed. Hours that are
-- stored already stay, since a day's partition may have been made again after it was dropped.
CREATE FUNCTION drop_expired() RETURNS boolean
LANGUAGE plpgsql
SET lock_timeout = '500ms'
AS $$
DECLARE
    keep       CONSTANT jsonb := (SELECT jsonb_object_agg(name, drop_after) FROM retention);
    expired    record;
    day_start  timestamptz;
    day_end    timestamptz;
BEGIN
    SELECT parent.relname AS parent, child.relname AS partition INTO expired
    FROM pg_inherits
    JOIN pg_class AS parent ON parent.oid = inhparent
    JOIN pg_class AS child ON child.oid = inhrelid
    WHERE parent.oid IN ('meter_reading'::regclass, 'vehicle_reading'::regclass)
        AND to_date(right(child.relname, 8), 'YYYYMMDD') + 1
            <= ((now() - (keep ->> parent.relname)::interval) AT TIME ZONE 'UTC')::date
    ORDER BY right(child.relname, 8), child.relname
    LIMIT 1;

    IF FOUND THEN
        day_start := to_date(right(expired.partition, 8), 'YYYYMMDD')::timestamp AT TIME ZONE 'UTC';
        day_end := day_start + INTERVAL '1 day';
        EXECUTE format('LOCK TABLE %I IN SHARE MODE', expired.partition);
        IF expired.parent = 'meter_reading' THEN
            INSERT INTO meter_hour_kept SELECT * FROM meter_hour(day_start, day_end) ON CONFLICT DO NOTHING;
        ELSE
            INSERT INTO vehicle_hour_kept SELECT * FROM vehicle_hour(day_start, day_end) ON CONFLICT DO NOTHING;
        END IF;
        EXECUTE format('DROP TABLE %I', expired.partition);
        RETURN true;
    END IF;

    WITH gone AS (
        DELETE FROM meter_hour_kept
        WHERE bucket < utc_bucket('1 day', now() - (keep ->> 'meter_hour')::interval)
        RETURNING *)
    INSERT INTO meter_day_kept
    SELECT meter_id, utc_bucket('1 day', bucket) AS day,
           sum(ac_milliwh)::bigint, sum(readings)::bigint, sum(voltage_centiv_sum)::bigint,
           sum(voltage_readings)::bigint, min(voltage_centiv_min), max(voltage_centiv_max)
    FROM gone
    GROUP BY meter_id, day
    ON CONFLICT DO NOTHING;

    WITH gone AS (
        DELETE FROM vehicle_hour_kept
        WHERE bucket < utc_bucket('1 day', now() - (keep ->> 'vehicle_hour')::interval)
        RETURNING *)
    INSERT INTO vehicle_day_kept
    SELECT vehicle_id, utc_bucket('1 day', bucket) AS day,
           sum(dc_milliwh)::bigint, sum(readings)::bigint,
           sum(soc_centipercent_sum)::bigint, sum(soc_readings)::bigint,
           min(soc_centipercent_min), max(soc_centipercent_max),
           sum(battery_temp_centic_sum)::bigint, sum(battery_temp_readings)::bigint,
           min(battery_temp_centic_min), max(battery_temp_centic_max)
    FROM gone
    GROUP BY vehicle_id, day
    ON CONFLICT DO NOTHING;

    WITH gone AS (
        DELETE FROM fleet_meter_minute
        WHERE bucket < utc_bucket('1 hour', now() - (keep ->> 'fleet_meter_minute')::interval)
        RETURNING bucket, ac_milliwh, readings)
    INSERT INTO fleet_meter_hour_kept AS kept (bucket, ac_milliwh, readings)
    SELECT utc_bucket('1 hour', bucket) AS hour, sum(ac_milliwh), sum(readings)
    FROM gone
    GROUP BY hour
    ON CONFLICT (bucket) DO UPDATE SET
        ac_milliwh = kept.ac_milliwh + excluded.ac_milliwh,
        readings = kept.readings + excluded.readings;

    WITH gone AS (
        DELETE FROM fleet_vehicle_minute
        WHERE bucket < utc_bucket('1 hour', now() - (keep ->> 'fleet_vehicle_minute')::interval)
        RETURNING bucket, dc_milliwh, readings)
    INSERT INTO fleet_vehicle_hour_kept AS kept (bucket, dc_milliwh, readings)
    SELECT utc_bucket('1 hour', bucket) AS hour, sum(dc_milliwh), sum(readings)
    FROM gone
    GROUP BY hour
    ON CONFLICT (bucket) DO UPDATE SET
        dc_milliwh = kept.dc_milliwh + excluded.dc_milliwh,
        readings = kept.readings + excluded.readings;
    RETURN false;
END
$$;
