DROP TABLE mails;
DROP TABLE one_time_links;
DROP TABLE sign_ups;
