-- Prints wrk's result as one line of JSON, after wrk's own lines.
function done(summary, latency, requests)
   local e = summary.errors
   print(string.format(
      '{"requests": %d, "seconds": %f, "bytes": %d, "errors": %d, "p50_us": %f, "p99_us": %f}',
      summary.requests, summary.duration / 1e6, summary.bytes,
      e.connect + e.read + e.write + e.status + e.timeout, latency:percentile(50), latency:percentile(99)))
end
