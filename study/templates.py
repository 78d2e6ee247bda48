"""The commented spec that `kdstudy init` writes."""

from __future__ import annotations

_STARTER = """\
# What should this study answer? The first lines of a spec say it, and the report shows `question`.
name: {name}
question: Which alpha suits resnet56 -> resnet20 on CIFAR-100?

protocol:
  base: crd-240            # `kdstudy schema` lists every key; any field of the protocol may follow
  # epochs: 60             # milestones move in proportion

data:
  name: cifar100           # `kdstudy datasets`
  root: data/cifar100      # torchvision's layout, or image parquet files
  # train_limit: 5000      # a stratified sample; the report then says that the study was cut
  # classes: 20            # the first so many, or a list of numbers or names
  # label_noise: 0.2       # the share of the training labels that are made wrong
  # validation: 0.1        # share of train that a search values its points on

teacher:
  regime: held_out         # seen: it knows the students' images; held_out: it learns from a part that they never see;
                           # cross_fitted: one network a fold, each image answered by the one that never saw it
  fraction: 0.5            # held_out: that part
  # stop_at: 60            # a weaker teacher: its training ends at this top-1 on its own views, in percent
  # checkpoint: NAME       # a teacher of `kdstudy teacher list`; without one it is trained first

pairs: [resnet56-resnet20] # `kdstudy pairs`, or any TEACHER-STUDENT of `kdstudy models`
# pairs: [{{pair: resnet56-resnet20, label: noisy, data: {{label_noise: 0.2}}}}]   # what differs, pair by pair

methods:                   # `kdstudy methods`; what is not named keeps the protocol's value
  ce: {{}}
  kd: {{}}
  loca: {{alpha: [0.8, 0.9, 0.95, 0.98, 0.99, 1.0, 1.01]}}
  # A search instead of a list: ranges, a sampler and a number of points.
  # loca: {{alpha: {{margin: [0.001, 0.5], log: true}}, tau: {{range: [1, 8], log: true}}}}

search: {{sampler: grid, pruner: none}}
# search: {{sampler: tpe, pruner: successive_halving, points: 30, warm_start: 2}}

seeds: 3                   # a number, or a list
budget: {{runs: null, hours: null, device_hours: null}}
# budget: {{run_hours: 12, epoch_minutes: 60, same_failures: 5}}   # limits of a run, and of runs that fail alike
"""


def starter(name: str) -> str:
    """A spec to start from, called `name`."""
    return _STARTER.format(name=name)
