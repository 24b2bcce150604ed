"""A test target that runs pytest.

Bazel's own `py_test` brings a C++ toolchain along, which is fetched from the network.
"""

def _pytest_test_impl(ctx):
    script = ctx.actions.declare_file(ctx.label.name + ".sh")
    command = "#!/bin/sh\nexec \"${PYTHON:-python3}\" -m pytest -p no:cacheprovider %s\n"
    ctx.actions.write(script, command % ctx.file.src.short_path, is_executable = True)
    runfiles = ctx.runfiles([ctx.file.src])
    for dep in ctx.attr.deps:
        runfiles = runfiles.merge(dep[DefaultInfo].default_runfiles)
    return [DefaultInfo(executable = script, runfiles = runfiles)]

pytest_test = rule(
    implementation = _pytest_test_impl,
    attrs = {"src": attr.label(allow_single_file = [".py"]), "deps": attr.label_list()},
    test = True,
)
