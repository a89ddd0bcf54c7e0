"""Synthetic chest CTs with reports: analytic anatomy, the 18 labels, CT-RATE's file layout.

`anatomy` and `chest` draw a healthy chest, `signs` adds the sign of each label, `report_writer`
puts the findings into words, `exam` simulates the scanner, `layout` writes the files.
"""
