-- wrk's side of load.closed: one request, the same each time, and one line of JSON at the end.
-- There is no `response` hook: it would copy each answer into Lua, and make the generator the thing that is measured.

function init(args) -- args[0] is the URL; then, where there is a body: its file, its media type
   if args[1] then
      local file = assert(io.open(args[1], "rb"))
      wrk.method = "POST"
      wrk.body = file:read("*a")
      wrk.headers["Content-Type"] = args[2]
      file:close()
   end
end

function done(summary, latency, requests)
   local cpu = os.clock() -- first: what follows is no part of the load
   local histogram = {}
   for index = 1, #latency do
      histogram[index] = string.format("[%d,%d]", latency(index))
   end
   local errors = summary.errors
   io.write(string.format(
      '\n{"duration_us":%d,"requests":%d,"refused":%d,"sockets":%d,"timeouts":%d,"cpu_s":%f,"histogram":[%s]}\n',
      summary.duration, summary.requests, errors.status, errors.connect + errors.read + errors.write, errors.timeout,
      cpu, table.concat(histogram, ",")
   ))
end
