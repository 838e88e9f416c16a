-- Ports of sandboxes are reached through the proxy by those who have the sandbox's token, or by everybody.
ALTER TABLE sandboxes
    ADD COLUMN public_ports boolean NOT NULL DEFAULT false,
    ADD COLUMN traffic_token text NOT NULL DEFAULT replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', '');
