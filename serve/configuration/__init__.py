"""Configuration files: read, checked to the last key, shown.

`documents` reads YAML, `faults` says where a value is wrong, `settings_file` knows the service's
own settings, `ray_files` what Ray and KubeRay take, `kinds` tells them apart.
"""
