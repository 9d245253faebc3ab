-- wrk's figures as one line of JSON, in the names that load.c uses.
function done(summary, latency)
  local e = summary.errors
  local seconds = summary.duration / 1e6
  io.write(string.format('{"requests": %d, "seconds": %.3f, "rps": %.1f, ', summary.requests,
                         seconds, summary.requests / seconds))
  io.write(string.format('"p50_us": %.1f, "p99_us": %.1f, "p999_us": %.1f, ',
                         latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))
  io.write(string.format('"errors": {"connect": %d, "read": %d, "write": %d, "status": %d, ' ..
                         '"timeout": %d}}\n', e.connect, e.read, e.write, e.status, e.timeout))
end
