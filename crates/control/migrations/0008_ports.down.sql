ALTER TABLE sandboxes DROP COLUMN traffic_token, DROP COLUMN public_ports;
