"""How `checkpoints/demo/model.safetensors` was made: data, training, evaluation, export. Not part of the wheel.

apt-get install openclipart-png                       # 8,000 public-domain drawings with alpha
pip download --no-deps -d WHEELS scikit-image scikit-learn
python -m checkpoints.train_demo.assets --wheels WHEELS --work WORK   # once: shrink and cache the raw material
nice -n 19 python -m checkpoints.train_demo.train --work WORK --hours 1   # resumes where it stopped
python -m checkpoints.train_demo.export --work WORK --to checkpoints/demo/model.safetensors
python -m checkpoints.train_demo.evaluate --work WORK --weights checkpoints/demo/model.safetensors
python -m checkpoints.train_demo.sheet --work WORK --weights checkpoints/demo/model.safetensors --photos PHOTOS --to docs/demo-checkpoint.png
"""
