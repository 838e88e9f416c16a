DROP TABLE outbox;
DROP TABLE idempotency_keys;
DROP TABLE sandboxes;
DROP TABLE hosts;
DROP TABLE api_keys;
DROP TABLE teams;
