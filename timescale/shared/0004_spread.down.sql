DROP PROCEDURE spread_fleet(timestamptz, timestamptz, interval);
DROP FUNCTION spread_missing(timestamptz, timestamptz);
DROP FUNCTION spread_between(timestamptz, timestamptz);
DROP FUNCTION spread_of(timestamptz, timestamptz, integer[], integer[]);
