-- A reading's energy flowed since its device's previous reading, but the fleet's sums have it where it was read.
-- fleet_spread moves it to the five minutes in which it flowed, evenly: a row adds to the sums of `bucket`, for the
-- readings of the five minutes `read_in`. The row in which both are alike counts these readings, of both streams, and
-- sums their energies. It tells when it is out of date: the fleet's minutes have another number or sum then, or it was
-- negated, since a reading before it arrived late.

-- Returns the rows of some meters and vehicles (NULL: of all) for readings in [range_from, range_to); the bounds are
-- whole five minutes. Longer than four hours before a reading nothing is known of its device, and such energy is only
-- taken out.
CREATE FUNCTION spread_of(
    range_from timestamptz, range_to timestamptz, meters integer[] DEFAULT NULL, vehicles integer[] DEFAULT NULL
) RETURNS TABLE (
    read_in timestamptz, bucket timestamptz, readings bigint, read_milliwh bigint, ac_milliwh bigint, dc_milliwh bigint)
LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_custom_plan -- so that the range excludes chunks and partitions
AS $$
#variable_conflict use_column
DECLARE
    near             CONSTANT timestamptz := range_from - INTERVAL '3 minutes';
    -- The devices whose first reading in the range has none shortly before it: in most minutes, that is few.
    silent_meters    CONSTANT integer[] := ARRAY(
        SELECT meter_id FROM meter_minute(near, range_to, meters) GROUP BY meter_id HAVING min(bucket) >= range_from);
    silent_vehicles  CONSTANT integer[] := ARRAY(
        SELECT vehicle_id FROM vehicle_minute(near, range_to, vehicles)
        GROUP BY vehicle_id HAVING min(bucket) >= range_from);
BEGIN
    RETURN QUERY
    WITH minute AS (
        SELECT meter_id AS device, true AS is_meter, bucket, first_ts, last_ts, readings, ac_milliwh AS milliwh
        FROM meter_minute(near, range_to, meters)
        UNION ALL
        SELECT meter_id, true, bucket, first_ts, last_ts, readings, ac_milliwh
        FROM meter_minute(range_from - INTERVAL '4 hours', near, silent_meters)
        UNION ALL
        SELECT vehicle_id, false, bucket, first_ts, last_ts, readings, dc_milliwh
        FROM vehicle_minute(near, range_to, vehicles)
        UNION ALL
        SELECT vehicle_id, false, bucket, first_ts, last_ts, readings, dc_milliwh
        FROM vehicle_minute(range_from - INTERVAL '4 hours', near, silent_vehicles)
    ), follows AS MATERIALIZED (
        SELECT *, lag(last_ts) OVER (PARTITION BY is_meter, device ORDER BY last_ts) AS previous FROM minute
    ), span AS (
        SELECT utc_bucket('5 minutes', bucket) AS read_in, is_meter, milliwh, last_ts,
               CASE WHEN first_ts - previous <= INTERVAL '4 hours' THEN previous END AS start
        FROM follows
        WHERE bucket >= range_from AND milliwh > 0
            AND (previous IS NULL OR previous < utc_bucket('5 minutes', bucket))
    ), moved AS (
        SELECT read_in, read_in AS bucket, is_meter, -milliwh AS milliwh FROM span
        UNION ALL
        -- What flowed until the end of the bucket, less what flowed until its start, so that all adds up.
        SELECT read_in, bucket, is_meter,
               div(milliwh * extract(epoch FROM least(bucket + INTERVAL '5 minutes', last_ts) - start),
                   extract(epoch FROM last_ts - start))
               - div(milliwh * extract(epoch FROM greatest(bucket, start) - start),
                     extract(epoch FROM last_ts - start))
        FROM span, generate_series(utc_bucket('5 minutes', start), last_ts, INTERVAL '5 minutes') AS bucket
        WHERE bucket < last_ts
    ), part AS (
        SELECT read_in, bucket, NULL::bigint AS readings, NULL::bigint AS read_milliwh,
               CASE WHEN is_meter THEN milliwh ELSE 0 END AS ac_milliwh,
               CASE WHEN is_meter THEN 0 ELSE milliwh END AS dc_milliwh
        FROM moved
        UNION ALL
        SELECT utc_bucket('5 minutes', bucket), utc_bucket('5 minutes', bucket), readings, milliwh, 0, 0
        FROM follows WHERE bucket >= range_from
    )
    SELECT read_in, bucket, sum(readings)::bigint, sum(read_milliwh)::bigint, sum(ac_milliwh)::bigint,
           sum(dc_milliwh)::bigint
    FROM part
    GROUP BY read_in, bucket;
END
$$;

-- Makes the rows for readings in [range_from, range_to) anew.
CREATE FUNCTION spread_between(range_from timestamptz, range_to timestamptz) RETURNS void
LANGUAGE sql AS $$
    DELETE FROM fleet_spread WHERE read_in >= range_from AND read_in < range_to;

    INSERT INTO fleet_spread (read_in, bucket, readings, read_milliwh, ac_milliwh, dc_milliwh)
    SELECT read_in, bucket, readings, read_milliwh, ac_milliwh, dc_milliwh FROM spread_of(range_from, range_to);
$$;

-- Returns the five minutes in the range whose rows are missing or out of date, and whether readings arrived late there
-- or have another energy.
CREATE FUNCTION spread_missing(range_from timestamptz, range_to timestamptz) RETURNS TABLE (
    bucket timestamptz, has_new boolean)
LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_custom_plan
AS $$
BEGIN
    RETURN QUERY
    SELECT five.bucket, (abs(known.readings), known.read_milliwh) IS DISTINCT FROM (five.readings, five.milliwh)
    FROM (SELECT utc_bucket('5 minutes', fleet.bucket) AS bucket,
                 sum(coalesce(meter_readings, 0) + coalesce(vehicle_readings, 0))::bigint AS readings,
                 sum(coalesce(ac_milliwh, 0) + coalesce(dc_milliwh, 0))::bigint AS milliwh
          FROM fleet_minute(range_from, range_to) AS fleet
          GROUP BY utc_bucket('5 minutes', fleet.bucket)) AS five
    LEFT JOIN fleet_spread AS known ON known.read_in = five.bucket AND known.bucket = five.bucket
    WHERE (known.readings, known.read_milliwh) IS DISTINCT FROM (five.readings, five.milliwh);
END
$$;

-- Brings fleet_spread up to date for the five minutes in the range that are over, from the newest hour on, for about
-- `lasting`. CALL it outside a transaction: each hour has one. It ends when another process is at work.
CREATE PROCEDURE spread_fleet(range_from timestamptz, range_to timestamptz, lasting interval DEFAULT '1 day')
LANGUAGE plpgsql AS $$
DECLARE
    began   CONSTANT timestamptz := clock_timestamp();
    -- What is older is not whole any more.
    oldest  CONSTANT timestamptz := (SELECT max(kept_from) + INTERVAL '1 day' FROM aggregate_retention()
                                     WHERE name IN ('meter_minute', 'vehicle_minute'));
    stale   record;
BEGIN
    -- The second pass is for what the first one has marked as out of date.
    FOR pass IN 1..2 LOOP
        FOR stale IN
            SELECT min(bucket) AS first, max(bucket) + INTERVAL '5 minutes' AS after, bool_or(has_new) AS has_new
            FROM spread_missing(utc_bucket('5 minutes', greatest(range_from, oldest, '2000-01-01 00:00Z')),
                                utc_bucket('5 minutes', least(range_to, now())))
            GROUP BY utc_bucket('1 hour', bucket)
            ORDER BY first DESC
        LOOP
            IF clock_timestamp() > began + lasting OR NOT pg_try_advisory_xact_lock(hashtext('wattline spread')) THEN
                RETURN;
            END IF;
            -- A late reading shortens the span of its device's next one.
            UPDATE fleet_spread SET readings = -abs(readings)
            WHERE stale.has_new AND bucket = read_in AND read_in IN (
                SELECT read_in FROM fleet_spread
                WHERE bucket >= stale.first AND bucket < stale.after AND read_in >= stale.after);
            PERFORM spread_between(stale.first, stale.after);
            COMMIT;
        END LOOP;
    END LOOP;
END
$$;
