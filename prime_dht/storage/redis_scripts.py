r"""The Lua scripts that read and write a Redis store; its layout is in :mod:`prime_dht.storage.redis_rows`.

Redis runs one script at a time, and all of it gets into the append-only file or nothing: a script is a transaction. So
every operation of the backend is one script, and one round trip. What a server may refuse (it has no memory left, may
not be written, or cannot write its disk) it refuses before the first line, because each script has a header that says
what it does.

- **Keys.** ``KEYS`` are the store's rows, order and lease. ``ARGV[1]`` is the *token* of the process that calls.
- **Shut out.** A script does nothing for a process that no longer holds the store: ``TAKEN`` when another has taken it,
  ``GONE`` when the server has lost it: both of its keys, or one, as a server does that evicts.
- **At most once.** A writing call that had no answer is made again, and might be carried out twice: now, and when the
  server comes to what it received before. So each writing call in flight has a *seat* (``ARGV[2]``) and a number
  (``ARGV[3]``) that only grows. A script writes down what it said beside seat and number. The same call again is told
  the same, and one that comes when its seat has a later call is ``STALE``. Both do nothing.
- **Undone.** A store counts its writes, and each says how many there have been. Behind its number a call says how many
  of them it knows of. If the store has fewer, the server has gone back to an earlier state, as it may by a loss of
  power or when a replica takes over: the call is ``UNDONE`` and does nothing.
- **Times and versions** are compared as bytes, because numbers in Lua have 53 bits; and byte by byte, because Lua's
  ``<`` obeys the locale of the server.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script, and the SHA-1 by which Redis knows it."""

    source: bytes = field(repr=False)
    sha1: bytes


def _script(*parts: str, flags: str) -> Script:
    source = "\n".join((f"#!lua flags={flags}", *parts)).encode()
    return Script(source, hashlib.sha1(source, usedforsecurity=False).hexdigest().encode())


_FENCE = r"""
local ROWS, ORDER, LEASE = KEYS[1], KEYS[2], KEYS[3]
local call = redis.call
local token = ARGV[1]
local holder = call('HGET', ROWS, '#holder')
if not holder or not call('ZSCORE', ORDER, '') then return redis.error_reply('GONE the store is not there') end
if holder ~= token then return redis.error_reply('TAKEN the store is another process\'s') end

local function less(a, b)
  for i = 1, #a do
    local x, y = a:byte(i), b:byte(i)
    if x ~= y then return x < y end
  end
  return false
end

-- The part of a member that comes first: its kind and what is terminated behind that.
local function first_part(member)
  local _, stop = member:find('\0\1', 1, true)
  return member:sub(1, stop)
end

-- The range of the members that begin with a terminated part.
local function range(part)
  return '[' .. part, '(' .. part:sub(1, -2) .. '\2'
end

-- The first member that begins with a terminated part.
local function first(part)
  local min, max = range(part)
  return call('ZRANGEBYLEX', ORDER, min, max, 'LIMIT', 0, 1)[1]
end
"""

_AT_MOST_ONCE = r"""
local seat, number = 'c' .. ARGV[2], ARGV[3]:sub(1, 8)
local last = call('HGET', ROWS, seat)
if last and last:sub(1, #token) == token then
  local last_number = last:sub(#token + 1, #token + #number)
  if last_number == number then return last:sub(#token + #number + 1) end
  if less(number, last_number) then return redis.error_reply('STALE a later call was made from this seat') end
end

local writes = tonumber(call('HGET', ROWS, '#writes') or 0)
if struct.unpack('>d', ARGV[3], 9) > writes then return redis.error_reply('UNDONE later writes are lost') end

local function said(reply)
  reply = struct.pack('>d', writes + 1) .. reply
  call('HSET', ROWS, '#writes', ('%.0f'):format(writes + 1), seat, token .. number .. reply)
  return reply
end
"""

# Let the server keep the store for some more ms; what remains is moved only when it is a day short.
KEEP = r"""
local function keep(ms)
  if call('PTTL', ROWS) < ms - 86400000 then
    call('PEXPIRE', ROWS, ms)
    call('PEXPIRE', ORDER, ms)
  end
end
"""

# How all kinds with a location make room: `kind‖location‖…` are the members, a location 4 bytes.
FURTHER_AWAY = r"""
local function xor(a, b) return bit.bxor(a, b) % 2 ^ 32 end

-- Visit the members of a kind that may go for a newcomer at the location `here`: those outside the arc and further
-- away, the furthest first, until `visit` returns true.
local function each_further_away(kind, here, near, spared_start, spared_stop, visit)
  local function is_spared(location) return spared_start <= location and location < spared_stop end
  local blocks = {{0, 2 ^ 32}}
  while #blocks > 0 do
    local start, stop = unpack(table.remove(blocks))
    local min, max = '[' .. kind .. struct.pack('>I4', start), '(' .. string.char(kind:byte() + 1)
    if stop < 2 ^ 32 then max = '(' .. kind .. struct.pack('>I4', stop) end
    local least = call('ZRANGEBYLEX', ORDER, min, max, 'LIMIT', 0, 1)[1]
    if least and not (spared_start <= start and stop <= spared_stop) then
      local greatest = call('ZREVRANGEBYLEX', ORDER, max, min, 'LIMIT', 0, 1)[1]
      local low, high = struct.unpack('>I4', least, 2), struct.unpack('>I4', greatest, 2)
      if low < high then
        local half, differing = 1, xor(low, high)
        while half * 2 <= differing do half = half * 2 end
        local middle = high - high % half
        local lower, upper = {middle - half, middle}, {middle, middle + half}
        local is_upper_near = math.floor(near / half) % 2 == 1
        blocks[#blocks + 1] = is_upper_near and upper or lower
        blocks[#blocks + 1] = is_upper_near and lower or upper
      elseif not is_spared(low) then
        if not is_spared(here) and xor(low, near) <= xor(here, near) then return end
        local part = '[' .. kind .. struct.pack('>I4', low)
        for _, member in ipairs(call('ZRANGEBYLEX', ORDER, part, part .. '\255')) do
          if visit(member) then return end
        end
      end
    end
  end
end
"""


def read_script(*parts: str) -> Script:
    return _script(_FENCE, *parts, flags="no-writes")


def write_script(*parts: str) -> Script:
    return _script(_FENCE, _AT_MOST_ONCE, *parts, flags="")


def free_script(*parts: str) -> Script:
    """A script that gives memory back, and so may run when the server has no more of it."""
    return _script(_FENCE, _AT_MOST_ONCE, *parts, flags="allow-oom")


# Holding the store.

# ARGV: token, schema version, lease in ms, ms to keep the store, and the token that may be succeeded or ''.
# Says '' or whose the store is.
TAKE = _script(
    "local ROWS, ORDER, LEASE, call = KEYS[1], KEYS[2], KEYS[3], redis.call",
    KEEP,
    r"""
local holder = call('GET', LEASE)
if holder and holder ~= ARGV[1] and holder ~= ARGV[5] then return holder end
local has_rows, has_order = call('EXISTS', ROWS) == 1, call('EXISTS', ORDER) == 1
if has_rows or has_order then
  if call('TYPE', ROWS).ok ~= 'hash' or call('TYPE', ORDER).ok ~= 'zset' or not call('ZSCORE', ORDER, '') then
    return redis.error_reply('FOREIGN not a whole store')
  end
  local schema = tonumber(call('HGET', ROWS, '#schema'))
  if not schema then return redis.error_reply('FOREIGN not a whole store') end
  if schema > tonumber(ARGV[2]) then return redis.error_reply('NEWER ' .. schema) end
end
call('SET', LEASE, ARGV[1], 'PX', ARGV[3])
call('HSETNX', ROWS, '#schema', ARGV[2])
call('HSET', ROWS, '#holder', ARGV[1])
call('ZADD', ORDER, 0, '')  -- without a member it would be gone, and its time to live with it
keep(tonumber(ARGV[4]))
return ''
""",
    flags="allow-oom",
)
# ARGV: token, lease in ms, ms to keep the store.
RENEW = _script(
    _FENCE,
    KEEP,
    r"""
if call('PEXPIRE', LEASE, ARGV[2]) == 0 then call('SET', LEASE, token, 'PX', ARGV[2]) end
keep(tonumber(ARGV[3]))
return ''
""",
    flags="allow-oom",
)
# ARGV: token.
RELEASE = _script(_FENCE, "call('DEL', LEASE)\nreturn ''", flags="allow-oom")

# Known peers.

# ARGV from 4: peers and rows in turn.
PUT_PEERS = write_script(
    r"""
for i = 4, #ARGV, 2 do
  local peer, row = ARGV[i], ARGV[i + 1]
  local old = call('HGET', ROWS, 'p' .. peer)
  if old then
    call('ZREM', ORDER, 'p' .. old:sub(9, 16) .. peer)
    row = old:sub(1, 8) .. row:sub(9)
  end
  call('HSET', ROWS, 'p' .. peer, row)
  call('ZADD', ORDER, 0, 'p' .. row:sub(9, 16) .. peer)
end
return said('')
""",
)
# ARGV from 2: limit. Returns peers and rows in turn.
PEERS = read_script(
    r"""
local found = {}
for _, member in ipairs(call('ZREVRANGEBYLEX', ORDER, '(q', '[p', 'LIMIT', 0, ARGV[2])) do
  found[#found + 1] = member:sub(10)
  found[#found + 1] = call('HGET', ROWS, 'p' .. member:sub(10))
end
return found
""",
)
# ARGV from 4: peers.
REMOVE_PEERS = free_script(
    r"""
for i = 4, #ARGV do
  local old = call('HGET', ROWS, 'p' .. ARGV[i])
  if old then
    call('HDEL', ROWS, 'p' .. ARGV[i])
    call('ZREM', ORDER, 'p' .. old:sub(9, 16) .. ARGV[i])
  end
end
return said('')
""",
)

# The rest.

# ARGV from 4: slots and rows in turn.
PUT_OWN_SLOTS = write_script(
    r"""
for i = 4, #ARGV, 2 do
  local slot, row = ARGV[i], ARGV[i + 1]
  local name = 'o' .. slot
  local last = call('HGET', ROWS, name) or row
  local created, retain = row:sub(1, 8), row:sub(9)
  if less(created, last:sub(1, 8)) then created = last:sub(1, 8) end
  if less(retain, last:sub(9)) then retain = last:sub(9) end
  call('HSET', ROWS, name, created .. retain)
  call('ZREM', ORDER, 'O' .. last:sub(9) .. slot)
  call('ZADD', ORDER, 0, name, 0, 'O' .. retain .. slot)
end
return said('')
""",
)
# ARGV from 4: name, row.
PUT_META = write_script(
    r"""
call('HSET', ROWS, 'n' .. ARGV[4], ARGV[5])
call('ZADD', ORDER, 0, 'n' .. ARGV[4])
return said('')
""",
)
# ARGV from 4: the schema that a store has come to.
END_STEP = write_script("call('HSET', ROWS, '#schema', ARGV[4])\nreturn said('')")
# ARGV from 2: fields, 7000 at most. Returns of each its row or nil.
GET_ROWS = read_script("return call('HMGET', ROWS, unpack(ARGV, 2))")
# ARGV from 2: min, max, limit. Returns members whose fields have the same names, without their kind, and rows in turn.
WALK = read_script(
    r"""
local found = {}
for _, member in ipairs(call('ZRANGEBYLEX', ORDER, ARGV[2], ARGV[3], 'LIMIT', 0, ARGV[4])) do
  found[#found + 1] = member:sub(2)
  found[#found + 1] = call('HGET', ROWS, member)
end
return found
""",
)
# Returns the numbers of keys, entries, bytes, records, providers, peers and ops.
STATS = read_script(
    r"""
local function number(kind)
  return tostring(call('ZLEXCOUNT', ORDER, '[' .. kind, '(' .. string.char(kind:byte() + 1)))
end
return {
  call('HGET', ROWS, '#keys') or '0', number('s'), call('HGET', ROWS, '#bytes') or '0',
  number('k'), number('m'), number('p'), number('t'),
}
""",
)
