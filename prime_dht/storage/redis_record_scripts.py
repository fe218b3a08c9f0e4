"""The Lua scripts for plain records and provider records; what all have in common is in
:mod:`prime_dht.storage.redis_scripts`.

``PUT_RECORD`` and ``ADD_PROVIDER`` decide what :mod:`prime_dht.storage.room` decides, in the same steps, for the reason
given in :mod:`prime_dht.storage.redis_entry_scripts`; the same law keeps them together.
"""

from __future__ import annotations

from prime_dht.storage.redis_scripts import FURTHER_AWAY, read_script, write_script

# A *shelf* is what room.py calls so. A record's name here is its key terminated, and a provider's the multihash
# terminated and the peer. A member that falls due ends with the location; one in the order of locations begins with it.
FORGET_RECORDS = r"""
local function terminated(part) return (part:gsub('%z', '\0\255')) .. '\0\1' end
local function unterminated(part) return (part:sub(1, -3):gsub('%z\255', '\0')) end

local function members_of_record(name, location, row)
  local expires = row:sub(1, 8)
  return 'k' .. unterminated(name), 'X' .. expires .. name .. location, 'x' .. location .. expires .. name
end

local function members_of_provider(name, location, row)
  local expires, multihash = row:sub(1, 8), first_part(name)
  local provider = name:sub(#multihash + 1)
  return 'm' .. name, 'q' .. multihash .. expires .. provider, 'Y' .. expires .. name .. location,
    'y' .. location .. expires .. name, 'w' .. terminated(provider) .. expires .. multihash .. location
end

local RECORDS = {
  kind = 'k', due = 'X', at = 'x', bytes = '#record_bytes', members_of = members_of_record,
  field = function(name) return 'k' .. unterminated(name) end,
  size = function(name, row) return #unterminated(name) + struct.unpack('>I4', row, 17) end,
}
local PROVIDERS = {
  kind = 'm', due = 'Y', at = 'y', bytes = '#provider_bytes', members_of = members_of_provider,
  field = function(name) return 'm' .. name end,
  size = function(name, row)
    local multihash = first_part(name)
    return #unterminated(multihash) + #name - #multihash + #row - 8
  end,
}

local function row_of(shelf, name) return call('HGET', ROWS, shelf.field(name)) end

local function forget_from(shelf, name, location)
  local row = row_of(shelf, name)
  if not row then return end
  call('HDEL', ROWS, shelf.field(name))
  call('ZREM', ORDER, shelf.members_of(name, location, row))
  call('HINCRBY', ROWS, shelf.bytes, -shelf.size(name, row))
end

-- Remove at most `limit` that are due before a time, and return how many.
local function forget_due(shelf, before, limit)
  local members = call('ZRANGEBYLEX', ORDER, '[' .. shelf.due, '(' .. shelf.due .. before, 'LIMIT', 0, limit)
  for _, member in ipairs(members) do forget_from(shelf, member:sub(10, -5), member:sub(-4)) end
  return #members
end
"""

_HOLD = r"""
local function hold_in(shelf, name, location, row)
  forget_from(shelf, name, location)
  call('HSET', ROWS, shelf.field(name), row)
  call('HINCRBY', ROWS, shelf.bytes, shelf.size(name, row))
  for _, member in ipairs({shelf.members_of(name, location, row)}) do call('ZADD', ORDER, 0, member) end
end
"""

# ARGV from 4: name, row, location; the first time that is not past; the limits of count and bytes; the node's own
# location; where those that are spared start and stop. Says '' or, as doubles, what there would have to be: the count
# and the bytes.
_ROOM = r"""
local name, row, location, past = ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local most_count, most_bytes = tonumber(ARGV[8]), tonumber(ARGV[9])
local near, spared_start, spared_stop = tonumber(ARGV[10]), tonumber(ARGV[11]), tonumber(ARGV[12])

-- Evict what has to go; if there cannot be room, return the count and bytes that there would be.
local function make_room(shelf)
  local count, bytes
  local function weigh()
    local standing = row_of(shelf, name)
    count = call('ZLEXCOUNT', ORDER, '[' .. shelf.kind, '(' .. string.char(shelf.kind:byte() + 1))
    bytes = tonumber(call('HGET', ROWS, shelf.bytes) or 0) + shelf.size(name, row)
    if standing then bytes = bytes - shelf.size(name, standing) else count = count + 1 end
  end
  local function has_room() return count <= most_count and bytes <= most_bytes end

  weigh()
  while not has_room() and forget_due(shelf, past, 1) == 1 do weigh() end
  if has_room() then return nil end
  local victims, here = {}, struct.unpack('>I4', location)
  each_further_away(shelf.at, here, near, spared_start, spared_stop, function(member)
    if has_room() then return true end
    victims[#victims + 1] = member
    local victim = member:sub(14)
    count, bytes = count - 1, bytes - shelf.size(victim, row_of(shelf, victim))
  end)
  if not has_room() then return count, bytes end
  for _, member in ipairs(victims) do forget_from(shelf, member:sub(14), member:sub(2, 5)) end
end
"""

# Plain records.

PUT_RECORD = write_script(
    FORGET_RECORDS,
    _HOLD,
    FURTHER_AWAY,
    _ROOM,
    r"""
local count, bytes = make_room(RECORDS)
if count then return said(struct.pack('>dd', count, bytes)) end
hold_in(RECORDS, name, location, row)
return said('')
""",
)

# Providers.

# ARGV behind those of _ROOM: the limits of providers of a content and of contents of a peer.
# Before count and bytes, it says how many providers the content would have. What is not in the way is 0.
ADD_PROVIDER = write_script(
    FORGET_RECORDS,
    _HOLD,
    FURTHER_AWAY,
    _ROOM,
    r"""
local most_of_key, most_of_peer = tonumber(ARGV[13]), tonumber(ARGV[14])
local multihash = first_part(name)
local part = 'q' .. multihash
local _, max = range(part)
local of_key, standing = call('ZLEXCOUNT', ORDER, '[' .. part .. past, max), row_of(PROVIDERS, name)
if not (standing and not less(standing:sub(1, 8), past)) then of_key = of_key + 1 end
if of_key > most_of_key then return said(struct.pack('>ddd', of_key, 0, 0)) end

local of_peer = 'w' .. terminated(name:sub(#multihash + 1))
while call('ZLEXCOUNT', ORDER, range(of_peer)) + (row_of(PROVIDERS, name) and 0 or 1) > most_of_peer do
  local oldest = first(of_peer)
  forget_from(PROVIDERS, oldest:sub(#of_peer + 9, -5) .. name:sub(#multihash + 1), oldest:sub(-4))
end

local count, bytes = make_room(PROVIDERS)
if count then
  local held = row_of(PROVIDERS, name)
  if not held then return said(struct.pack('>ddd', 0, count, bytes)) end
  if #held < #row then row = row:sub(1, 8) .. held:sub(9) end
end
hold_in(PROVIDERS, name, location, row)
return said('')
""",
)
# ARGV from 2: multihash terminated, the first time that is not past, limit. Returns providers and rows in turn.
GET_PROVIDERS = read_script(
    r"""
local found = {}
local multihash = ARGV[2]
local min, max = range('q' .. multihash)
for _, member in ipairs(call('ZREVRANGEBYLEX', ORDER, max, min .. ARGV[3], 'LIMIT', 0, ARGV[4])) do
  local provider = member:sub(#multihash + 10)
  found[#found + 1] = provider
  found[#found + 1] = call('HGET', ROWS, 'm' .. multihash .. provider)
end
return found
""",
)

# The way from schema 1, in which nothing was counted or placed. All of these may be done again.

# ARGV from 4: 'k' or 'm', then names and locations in turn.
PLACE = write_script(
    FORGET_RECORDS,
    r"""
local shelf, due = RECORDS, 'K'
if ARGV[4] == 'm' then shelf, due = PROVIDERS, 'M' end
for i = 5, #ARGV, 2 do
  local name, location = ARGV[i], ARGV[i + 1]
  local row = row_of(shelf, name)
  call('ZREM', ORDER, due .. row:sub(1, 8) .. shelf.field(name):sub(2))
  for _, member in ipairs({shelf.members_of(name, location, row)}) do call('ZADD', ORDER, 0, member) end
end
return said('')
""",
)
# ARGV from 4: schema, bytes of records and of providers.
END_PLACING = write_script(
    r"""
call('HSET', ROWS, '#schema', ARGV[4], '#record_bytes', ARGV[5], '#provider_bytes', ARGV[6])
return said('')
""",
)
