from setuptools import setup

setup(cmake_source_dir=".")  # scikit-build-core's setuptools plugin runs CMakeLists.txt
