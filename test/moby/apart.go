package main

// apart names the tests that no daemon passes in a host like ours, with the reason. What fails of them is not counted
// as run; whatever is not listed here counts.
var apart = map[string]string{}
