"""What comes from outside, made at random: files, messages, options. Nothing of it may end badly.

A target is an ordinary Hypothesis test in a module of this folder, `test_<what is read>.py`. The suite runs it for a
few examples (`@settings(max_examples=...)` for the suite goes through `budget.examples`); `make fuzz` runs all targets
again and again, with other seeds, for ten minutes (`FUZZ_MINUTES=60 make fuzz` for an hour), and stops at the first
failure, which Hypothesis shrinks and prints with the line that repeats it.

A target calls the code inside `budget.limits()`, which fails it when a call takes 5 seconds of work or 1 GB beyond
what the process held before, and lets `NufedError`s alone pass: any other exception is a traceback for some user.

    @settings(max_examples=examples(50))
    @given(content=st.binary())
    def test_a_file_of_any_content_is_read_or_refused(content):
        with limits():
            read(content)
"""
