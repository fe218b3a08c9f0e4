// node fetch_blocks.mjs <multiaddr> <cid>...: fetches blocks over Bitswap and prints the CID and the size of each.
import './with_resolvers.mjs'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { createBitswap } from '@helia/bitswap'
import { identify } from '@libp2p/identify'
import { defaultLogger } from '@libp2p/logger'
import { tcp } from '@libp2p/tcp'
import { multiaddr } from '@multiformats/multiaddr'
import { MemoryBlockstore } from 'blockstore-core'
import { createLibp2p } from 'libp2p'
import { CID } from 'multiformats/cid'

const [address, ...cids] = process.argv.slice(2)
const libp2p = await createLibp2p({
  addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  services: { identify: identify() }
})
const bitswap = createBitswap({ libp2p, blockstore: new MemoryBlockstore(), logger: defaultLogger() })
await bitswap.start()
await libp2p.dial(multiaddr(address))
for (const text of cids) {
  const block = await bitswap.want(CID.parse(text), { signal: AbortSignal.timeout(30_000) }) // it checks the hash
  console.log(text, block.length)
}
await bitswap.stop()
await libp2p.stop()
