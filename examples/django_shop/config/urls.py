"""Addresses."""

from django.contrib import admin
from django.urls import path
from orders import views

urlpatterns = [
    path("orders/", views.order),
    path("orders/<int:number>/", views.show),
    path("orders/<int:number>/shipped/", views.shipped),
    path("admin/", admin.site.urls),
]
