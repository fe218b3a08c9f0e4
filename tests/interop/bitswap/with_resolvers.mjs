// Node 20 has no Promise.withResolvers, which parts of libp2p call.
Promise.withResolvers ??= function () {
  const settling = {}
  settling.promise = new this((resolve, reject) => Object.assign(settling, { resolve, reject }))
  return settling
}
