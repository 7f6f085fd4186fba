"""The server: chooses, checks and averages."""

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from nufed import MetaFedAvg
from sensors.task import build_model

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds; `result` has the final arrays."""
    strategy = MetaFedAvg(seed=0, participation_fraction=0.5)
    start = ArrayRecord(build_model().state_dict())
    result = strategy.start(grid, start, num_rounds=int(context.run_config["num-rounds"]))
    print(
        "loss of the chosen clients by round:",
        [round(float(metrics["loss"]), 3) for metrics in result.train_metrics_clientapp.values()],
    )
