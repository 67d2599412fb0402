#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What the reports share: tables of bars from bench/run's results.jsonl, as Markdown on standard output.

A figure is the median of its rounds, with the least and the greatest behind it; a ratio is that of
the two medians. A row without figures says why; it never counts as met. Each report_NAME.py has its rows
alone, and calls report() with them.
"""
import json, statistics, sys


class Results:
    def __init__(self, path):
        with open(path) as lines:
            self.lines = [json.loads(line) for line in lines]
        self.scale = self.pick('scale')[0]
        self.reasons = {line['part']: f'skipped: {line["reason"]}' for line in self.pick('skipped')}
        self.reasons.update({line['part']: 'failed' for line in self.pick('failed')})

    def pick(self, row, **like):
        return [line for line in self.lines if line['row'] == row and
                all(line.get(key) == value for key, value in like.items())]

    def values(self, key, row, **like):
        return [line[key] for line in self.pick(row, **like)]

    def group(self, series, disks, key):
        """Medians of group.c's runs."""
        return [line[key]['median'] for line in self.pick('group', series=series, disks=disks)]


def number(value):
    if value >= 1000:
        return f'{value:,.0f}'
    return f'{value:.3g}' if value < 100 else f'{value:.0f}'


def spread(values, unit, scale=1):
    scaled = [value / scale for value in values]
    text = f'{number(statistics.median(scaled))} {unit}'
    if len(scaled) > 1:
        text += f' ({number(min(scaled))} - {number(max(scaled))})'
    return text


class Table:
    def __init__(self, results):
        self.results = results
        self.rows = []

    def add(self, name, part, ours, reference, ratio, bar, met):
        verdict = 'yes' if met else '**no**'
        self.rows.append((name, ours, reference, ratio, bar, verdict if bar else ''))

    def missing(self, name, part, bar):
        reason = self.results.reasons.get(part, 'not measured')
        self.rows.append((name, reason, '', '', bar, 'not measured' if bar else ''))

    def compare(self, name, part, ours, reference, unit, scale, bar, judge):
        """judge: of the ratio ours / reference."""
        if not ours or not reference:
            return self.missing(name, part, bar)
        ratio = statistics.median(ours) / statistics.median(reference)
        self.add(name, part, spread(ours, unit, scale), spread(reference, unit, scale),
                 f'{ratio:.3g}', bar, judge(ratio))

    def limit(self, name, part, ours, unit, scale, bar, most):
        if not ours:
            return self.missing(name, part, bar)
        self.add(name, part, spread(ours, unit, scale), '', '', bar,
                 statistics.median(ours) <= most)

    def print(self):
        print('| what | vmimg | reference | ratio | bar | met |')
        print('|---|---|---|---|---|---|')
        for row in self.rows:
            print('| ' + ' | '.join(row) + ' |')


def at_least(bound):
    return lambda ratio: ratio >= bound


def at_most(bound):
    return lambda ratio: ratio <= bound


def report(*sections, how=''):
    """The program: RESULTS.jsonl is its argument; each section adds its rows to the table."""
    if len(sys.argv) != 2:
        sys.exit(f'usage: {sys.argv[0]} RESULTS.jsonl')
    results = Results(sys.argv[1])
    scale = results.scale
    table = Table(results)
    for rows in sections:
        rows(table, results)
    print(f'\n{scale["cpus"]} CPUs, Linux {scale["kernel"]}, {scale["file_system"]}, {how}'
          f'{scale["rounds"]} rounds: median (least - greatest).\n')
    if scale['quick']:
        print('**A quick run: it shows that everything runs; the figures mean nothing.**\n')
    table.print()
    verdicts = [row[-1] for row in table.rows if row[-1]]
    print(f'\n{verdicts.count("yes")} of {len(verdicts)} bars met.')
