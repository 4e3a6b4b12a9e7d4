"""Tools around prunekit: tables beside published ones, measurements, the golden corpus."""
