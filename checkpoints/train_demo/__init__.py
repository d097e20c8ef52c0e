"""How `checkpoints/demo/model.safetensors` was made: data, two courses of training, evaluation, export. Not part of the wheel.

apt-get install openclipart-png                       # 8,000 public-domain drawings with alpha
pip download --no-deps -d WHEELS scikit-image==0.26.0 scikit-learn==1.9.1
python -m checkpoints.train_demo.assets --wheels WHEELS --work WORK         # once: shrink and cache the raw material
nice -n 19 python -m checkpoints.train_demo.train --work WORK --hours 2.0    # still pictures; resumes where it stopped
nice -n 19 python -m checkpoints.train_demo.train_video --work WORK --hours 0.9   # clips, from the best weights of the first course
python -m checkpoints.train_demo.export --weights WORK/video-best.pt --to checkpoints/demo/model.safetensors
make eval-demo WORK=WORK
python -m checkpoints.train_demo.plot --log WORK/images-log.jsonl --title "Still pictures" --to docs/demo-training-images.svg
python -m checkpoints.train_demo.sheet --work WORK --weights checkpoints/demo/model.safetensors --photos PHOTOS --to docs/demo-checkpoint.png
python -m checkpoints.train_demo.strip --work WORK --weights checkpoints/demo/model.safetensors --videos VIDEOS --to docs/demo-checkpoint-video.png
"""
