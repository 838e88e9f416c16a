DROP TABLE daily_starts;
DROP TABLE starts;
