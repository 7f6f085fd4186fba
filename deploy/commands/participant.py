"""Who a client is, as `nufed client` and `nufed check` are told."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from nufed.common.config import Scalar
from nufed.deploy.commands.option_groups import DeclaredOptions


@dataclass(frozen=True)
class ParticipantOptions(DeclaredOptions):
    """Who a client is, which data it brings and what it keeps."""

    data: Annotated[
        str,
        typer.Option(
            help="this client's data: csv:, parquet:, npz: or images:PATH, python:module:function, or digits#3/20",
            metavar="SPEC",
        ),
    ]
    name: Annotated[str, typer.Option(help="this client's stable name", metavar="NAME")]
    new: Annotated[
        bool, typer.Option("--new", help="never take part in training; adapt the final model and be judged")
    ] = False
    personal_model: Annotated[
        Path | None,
        typer.Option(help="file to keep the run's final model in, adapted to this client's data", metavar="FILE"),
    ] = None
    keep: Annotated[
        str,
        typer.Option(
            help="of the personal model: best keeps the run's where that is better on validation examples, or always",
            metavar="best|always",
        ),
    ] = "best"
    state: Annotated[
        Path | None,
        typer.Option(
            help="file that remembers which examples were trained on (default: beside --personal-model)", metavar="FILE"
        ),
    ] = None

    allow_statistics: Annotated[
        bool,
        typer.Option(
            "--allow-statistics",
            help="tell the server counts, means and deviations of the run's columns and shares of its classes, if it "
            "asks; docs/your-own-data.md says what that reveals",
        ),
    ] = False
    statistics_min_count: Annotated[
        int,
        typer.Option(help="examples that everything told then is made of, at least, whatever the run says", min=2),
    ] = 10
    max_epsilon: Annotated[
        float,
        typer.Option(
            help="most that each record may cost in privacy, ε in all runs together: beyond it this client trains no "
            "more and is still evaluated; runs without record-level differential privacy are refused (0: no bound)",
            min=0,
            metavar="E",
        ),
    ] = 0.0
    require_record_privacy: Annotated[
        bool,
        typer.Option(
            "--require-record-privacy", help="train for runs with record-level differential privacy alone (--dp record)"
        ),
    ] = False
    privacy_ledger: Annotated[
        Path | None,
        typer.Option(
            help="file that remembers what the records have cost (default: beside --state or --personal-model)",
            metavar="FILE",
        ),
    ] = None

    require_secure_aggregation: Annotated[
        bool,
        typer.Option(
            "--require-secure-aggregation",
            help="take part only where the server learns no more than the sum of the clients' models",
        ),
    ] = False

    def node_config(self) -> dict[str, Scalar]:
        """Return what the client's app reads; what can be wrong with it before a run is known is refused here.

        Raises:
            NufedError: the data are no known kind, or the personal model or the state cannot be written, or
                a privacy budget has no file.
        """
        from nufed.client.first_look import look_at
        from nufed.client.keeping import find_keep
        from nufed.client.personal_model import personal_path
        from nufed.client.record_privacy import MAX_EPSILON, REQUIRES, check_budget
        from nufed.client.secure_trust import REQUIRED
        from nufed.client.split_memory import SplitMemory, state_path
        from nufed.client.told_statistics import ALLOWS, LEAST
        from nufed.common.data.private.load import check_spec

        check_spec(self.data, self.name)
        look_at(self.data)
        keep = find_keep(self.keep)
        config: dict[str, Scalar] = {"data": self.data, "client-id": self.name}
        if self.new:
            config["group"] = "new"
        if self.allow_statistics:
            config |= {ALLOWS: True, LEAST: self.statistics_min_count}
        if self.personal_model:
            config["personal-model"] = str(self.personal_model.expanduser().absolute())
            config["keep"] = keep
        personal_path(config)
        if self.state:
            config["state"] = str(self.state.expanduser().absolute())
        SplitMemory.load(state_path(config))
        if self.privacy_ledger:
            config["privacy-ledger"] = str(self.privacy_ledger.expanduser().absolute())
        if self.max_epsilon:
            config[MAX_EPSILON] = self.max_epsilon
        if self.require_record_privacy:
            config[REQUIRES] = True
        check_budget(config)
        if self.require_secure_aggregation:
            config[REQUIRED] = True
        return config
