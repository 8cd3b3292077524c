-- These tell on both engines what is stored, and how much of it.

-- Returns the parts of which all that is stored consists. A part is a chunk or a day; a table that has none is one part
-- without a range.
CREATE FUNCTION storage_parts() RETURNS TABLE (
    name text, part text, range_start timestamptz, range_end timestamptz, compressed boolean, rows_estimated bigint,
    bytes bigint, bytes_before bigint)
LANGUAGE sql STABLE AS $$
    SELECT * FROM engine_parts()
    UNION ALL
    SELECT name, name, NULL, NULL, false, greatest(reltuples::bigint, pg_stat_get_live_tuples(oid)),
           pg_total_relation_size(oid), NULL
    FROM unnest(ARRAY['fleet_spread', 'import_journal', 'quarantine', 'efficiency_hour', 'session_hour',
                      'charging_session', 'alert', 'alert_transition', 'storage_size']) AS name
    JOIN pg_class ON oid = name::regclass
$$;

-- Returns the sizes of all that is stored. `oldest` and `newest` are the starts of the first and the last part.
CREATE FUNCTION storage_sizes() RETURNS TABLE (
    name text, rows_estimated bigint, bytes bigint, parts bigint, compressed_parts bigint,
    oldest timestamptz, newest timestamptz)
LANGUAGE sql STABLE AS $$
    SELECT name, coalesce(sum(rows_estimated), 0)::bigint, coalesce(sum(bytes), 0)::bigint,
           count(range_start), count(*) FILTER (WHERE compressed), min(range_start), max(range_start)
    FROM storage_parts()
    GROUP BY name
$$;
