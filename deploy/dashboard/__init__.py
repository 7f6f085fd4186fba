"""The page in the browser: what a run tells, as it goes on and when it is over; runs and experiments side by side."""
