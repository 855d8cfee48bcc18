"""Orders by HTTP. Each request is one transaction, as ATOMIC_REQUESTS says."""

from __future__ import annotations

import json

from django.db import transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_POST

from orders.models import Order
from orders.workflows import Fulfilment, fulfil
from pgworkflows.contrib.django import engine, start_workflow, trigger_event

IN_STOCK = 12


@csrf_exempt
@require_POST
def order(request: HttpRequest) -> HttpResponse:
    """Take an order."""
    wanted = json.loads(request.body)
    made = Order.objects.create(**{name: wanted[name] for name in ("customer", "article", "quantity")})
    run = start_workflow(fulfil, Fulfilment(order=made.pk), resource_id=made.customer)
    if made.quantity > IN_STOCK:
        # Neither the order nor its run was ever there.
        transaction.set_rollback(True)
        return JsonResponse({"problem": f"only {IN_STOCK} are in stock"}, status=409)
    made.run_id = run.id
    made.save()
    return JsonResponse({"order": made.pk, "run": str(run.id)}, status=201)


@require_GET
def show(request: HttpRequest, number: int) -> HttpResponse:
    """How far an order is."""
    found = get_object_or_404(Order, pk=number)
    assert found.run_id is not None
    progress = engine().check_progress(found.run_id)
    return JsonResponse({"state": found.state, "run": progress.status, "percent": progress.completion_percentage})


@csrf_exempt
@require_POST
def shipped(request: HttpRequest, number: int) -> HttpResponse:
    """The parcel has left the house."""
    found = get_object_or_404(Order, pk=number)
    assert found.run_id is not None
    trigger_event(found.run_id, "shipped", idempotency_key="shipped")
    return HttpResponse(status=204)
