//! Sandbox networks: slots of namespace, veth pair, tap device, addresses and packet filter.
