DROP FUNCTION storage_sizes();
DROP FUNCTION storage_parts();
