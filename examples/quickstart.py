"""Train a starting point for handwritten digits over 20 clients, and adapt it to one that has never been seen.

python examples/quickstart.py
"""

import nufed


def main() -> None:
    """Run the federation, look at it, and personalize its model."""
    run = nufed.simulate("digits", num_inner_steps=3, num_rounds=20, engine="auto")
    print(run)

    curves = run.curves("new").query("metric == 'accuracy'")
    print("accuracy of new clients after s fine-tuning steps:")
    print(curves.groupby("step")["value"].mean().round(3).to_string())

    run.plot().savefig("quickstart.png")
    longer = run.resume(num_rounds=25)
    print(nufed.compare({"20 rounds": run, "25 rounds": longer})[["run", "group", "before", "after"]].to_string())


if __name__ == "__main__":
    main()
