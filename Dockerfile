# docker build --build-arg TENSORFLOW=gpu --tag NAME .     with cpu (the default), gpu or tpu
FROM python:3.11-slim
ARG TENSORFLOW=cpu
WORKDIR /opt/lockstep
COPY setup.cfg pyproject.toml constraints.txt README.md ./
COPY trainer trainer
COPY models models
COPY input_pipeline input_pipeline
COPY configs configs
COPY clusters clusters
# The newest TensorFlow for TPUs is older than the constraints.
RUN if [ "$TENSORFLOW" = tpu ]; then sed -i '/^tensorflow/d' constraints.txt; fi \
    && pip install --no-cache-dir -c constraints.txt ".[$TENSORFLOW,datasets,text]" \
    && rm -r /opt/lockstep/*
WORKDIR /
ENTRYPOINT ["lockstep"]
