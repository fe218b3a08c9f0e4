// Prints the CIDs that ipfs-unixfs-importer gives to some contents, as JSON: node make_fixture.mjs > unixfs_v1_2025.json
//
// The content of n bytes is the first n bytes of the AES-128-CTR key stream of a zero key and a zero counter block. It is
// quick to make in any language, and no two chunks of it are equal.
import { createCipheriv } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { BlackHoleBlockstore } from 'blockstore-core/black-hole'
import { importer } from 'ipfs-unixfs-importer'
import { fixedSize } from 'ipfs-unixfs-importer/chunker'
import { balanced } from 'ipfs-unixfs-importer/layout'

const PROFILE = 'unixfs-v1-2025'
const MIB = 2 ** 20
const SIZES = [0, 1, MIB - 1, MIB, MIB + 1, 10 * MIB, 200 * MIB + 7, 1100 * MIB]

// The shape of the tree is the same at any scale: chunks of 4 bytes and 3 links a node reach 4 levels with 40 chunks.
const SMALL = { chunk_bytes: 4, links_per_node: 3, chunks: Array.from({ length: 40 }, (_, i) => i + 1) }

function * content (size) {
  const cipher = createCipheriv('aes-128-ctr', Buffer.alloc(16), Buffer.alloc(16))
  const zeros = Buffer.alloc(MIB)
  for (let left = size; left > 0; left -= MIB) {
    yield cipher.update(zeros.subarray(0, Math.min(left, MIB)))
  }
}

async function rootOf (size, options = {}) {
  const source = [{ content: content(size) }]
  for await (const { cid } of importer(source, new BlackHoleBlockstore(), { profile: PROFILE, ...options })) {
    return cid.toString()
  }
}

const versionOf = (name) => JSON.parse(readFileSync(new URL(`node_modules/${name}/package.json`, import.meta.url))).version

const fixture = {
  made_by: `ipfs-unixfs-importer ${versionOf('ipfs-unixfs-importer')}`,
  profile: PROFILE,
  content: 'AES-128-CTR key stream, zero key, zero counter block',
  cid_by_size: {},
  small: { chunk_bytes: SMALL.chunk_bytes, links_per_node: SMALL.links_per_node, cid_by_chunks: {} }
}
for (const size of SIZES) {
  fixture.cid_by_size[size] = await rootOf(size)
}
for (const chunks of SMALL.chunks) {
  fixture.small.cid_by_chunks[chunks] = await rootOf(chunks * SMALL.chunk_bytes, {
    chunker: fixedSize({ chunkSize: SMALL.chunk_bytes }),
    layout: balanced({ maxChildrenPerNode: SMALL.links_per_node })
  })
}
console.log(JSON.stringify(fixture, null, 2))
