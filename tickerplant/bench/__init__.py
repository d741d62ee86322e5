"""`tickerplant bench`: throughput and latency under the reference load, as ratios to a reference of the same run."""
